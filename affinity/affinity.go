package affinity

import (
	"context"

	"github.com/homing-grpc/homing/internal/callctx"
)

const (
	// IDHeader names the server: on a request the one that is wanted, on a
	// response (header, or trailer of a call that failed early) the one that
	// answered.
	IDHeader = "affinity-id"

	// KeyHeader carries the session key on a request.
	KeyHeader = "affinity-key"
)

// Affinity is what a call wants. An ID wins over a Key; the Key then only says
// where to go when the server named by ID is gone for good.
type Affinity struct {
	ID       string // the server wanted, "" if none
	Key      string // the session key, "" if none
	Required bool   // the server named by ID or an error, never another
}

// With returns a context whose calls prefer the server registered under id.
// They wait for it while it reconnects, and go to another server when it stays
// away for longer than the balancer's reconnectWindow. A key that ctx carries
// stays. An empty id removes the id, if any, that ctx carries.
func With(ctx context.Context, id string) context.Context {
	return withID(ctx, id, false)
}

// Require is [With] for calls that only that server can answer: when it stays
// away they fail with code Unavailable, and wait-for-ready calls wait on to
// their deadline. They never reach another server.
func Require(ctx context.Context, id string) context.Context {
	return withID(ctx, id, true)
}

// WithKey returns a context whose calls go to the server that is home to key:
// the same one from every process as long as that server is there. An id that
// ctx carries stays, and wins. An empty key removes the key, if any, that ctx
// carries.
func WithKey(ctx context.Context, key string) context.Context {
	var v callctx.Value
	if old := callctx.From(ctx); old != nil {
		v = *old
	}
	if key == "" && v.Key == "" {
		return ctx
	}
	v.Key, v.NoHeaders = key, false
	return callctx.With(ctx, v)
}

func withID(ctx context.Context, id string, required bool) context.Context {
	var v callctx.Value
	if old := callctx.From(ctx); old != nil {
		v = *old
	}
	if id == "" && v.ID == "" {
		return ctx
	}
	v.ID, v.Required, v.NoHeaders = id, required && id != "", false
	return callctx.With(ctx, v)
}

// FromContext returns the affinity that [With], [Require], [WithKey] and
// [Session.Context] put into ctx, and false if ctx carries none. A session shows as
// its key. FromContext does not look at metadata.
func FromContext(ctx context.Context) (Affinity, bool) {
	v := callctx.From(ctx)
	if v.Empty() {
		return Affinity{}, false
	}
	return Affinity{ID: v.ID, Key: v.Key, Required: v.Required}, true
}
