package stickybalancer

import (
	"context"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/balancer"
)

func isQueue(err error) bool { return err == balancer.ErrNoSubConnAvailable }

// held are the attempts that wait for a server, by their contexts: gRPC picks for one
// with the same context until it has gone somewhere, and ends that when the call ends.
type held struct {
	n      atomic.Int64
	closed atomic.Bool
	calls  sync.Map // context.Context → *hold
}

type hold struct {
	since time.Time
	stop  func() bool
}

// begin notes that a pick was queued, if the attempt is not held already. over is
// called, in a goroutine, if its context ends first.
func (h *held) begin(ctx context.Context, over func()) {
	// Of gRPC's contexts all are pointers; other types need not be comparable.
	if reflect.TypeOf(ctx).Kind() != reflect.Pointer || h.closed.Load() {
		return
	}
	if _, again := h.calls.Load(ctx); again {
		return
	}
	one := &hold{since: time.Now(), stop: context.AfterFunc(ctx, over)}
	if _, again := h.calls.LoadOrStore(ctx, one); again {
		one.stop()
		return
	}
	h.n.Add(1)
	if ctx.Err() != nil || h.closed.Load() {
		h.end(ctx) // over may have come before
	}
}

// end forgets an attempt, and returns since when it was held.
func (h *held) end(ctx context.Context) (since time.Time, ok bool) {
	if reflect.TypeOf(ctx).Kind() != reflect.Pointer {
		return time.Time{}, false
	}
	v, ok := h.calls.LoadAndDelete(ctx)
	if !ok {
		return time.Time{}, false
	}
	one := v.(*hold)
	h.n.Add(-1)
	one.stop()
	return one.since, true
}

// close forgets all.
func (h *held) close() {
	h.closed.Store(true)
	for ctx := range h.calls.Range {
		h.end(ctx.(context.Context))
	}
}
