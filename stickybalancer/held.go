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

// held are a channel's attempts that wait for a server, by their contexts: gRPC picks for one
// with the same context until it has gone somewhere, and ends that when the call ends.
// A pick that fails ends the attempt, unless that is wait-for-ready. Which it is shows
// when it is picked for again; and where there was a retry, the call goes on.
type held struct {
	policies int // that count it; guarded by channels.mu

	n      atomic.Int64
	closed atomic.Bool
	calls  sync.Map // context.Context → *hold
}

type hold struct {
	since  time.Time
	stop   func() bool
	failed atomic.Int64 // for how long it had been held when a pick failed; 0 if none has
	goesOn atomic.Bool  // it was picked for after that
}

// again notes that the attempt is still held.
func (o *hold) again() {
	if o.failed.Load() != 0 {
		o.goesOn.Store(true)
	}
}

// inVain returns for how long an attempt was held that has ended.
func (o *hold) inVain() time.Duration {
	if d := o.failed.Load(); d != 0 && !o.goesOn.Load() {
		return time.Duration(d)
	}
	return time.Since(o.since)
}

// begin notes that a pick was queued, if the attempt is not held already. over is
// called, in a goroutine, if its context ends first.
func (h *held) begin(ctx context.Context, over func()) {
	// Of gRPC's contexts all are pointers; other types need not be comparable.
	if reflect.TypeOf(ctx).Kind() != reflect.Pointer || h.closed.Load() {
		return
	}
	if one, again := h.calls.Load(ctx); again {
		one.(*hold).again()
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

// fail notes that a pick has failed, if the attempt is held.
func (h *held) fail(ctx context.Context) {
	if h.n.Load() == 0 || reflect.TypeOf(ctx).Kind() != reflect.Pointer {
		return
	}
	if v, ok := h.calls.Load(ctx); ok {
		one := v.(*hold)
		one.again()
		one.failed.CompareAndSwap(0, max(1, int64(time.Since(one.since))))
	}
}

// end forgets an attempt, and returns what there was of it, nil if it was not held.
func (h *held) end(ctx context.Context) *hold {
	if reflect.TypeOf(ctx).Kind() != reflect.Pointer {
		return nil
	}
	v, ok := h.calls.LoadAndDelete(ctx)
	if !ok {
		return nil
	}
	one := v.(*hold)
	h.n.Add(-1)
	one.stop()
	return one
}

// close forgets all.
func (h *held) close() {
	h.closed.Store(true)
	for ctx := range h.calls.Range {
		h.end(ctx.(context.Context))
	}
}
