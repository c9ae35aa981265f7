package affinity

import (
	"context"
	"fmt"

	"github.com/homing-grpc/homing/internal/callctx"
)

// A Route tells where a call went and why, for logs and tests. It is filled in when
// the balancer picks a connection, and again with each retry; on a stream, from when
// the stream has been opened. Its methods may be called at any time, from anywhere,
// and tell of the last attempt. The zero value is ready. It is for one call: calls that
// share one are mixed up.
type Route struct{ r callctx.Route }

// Observe returns a context whose call is noted in r, and in the routes of those who
// observe it already. Calls that nobody observes do not pay for it. Only the balancer of
// this module takes notes.
func Observe(ctx context.Context, r *Route) context.Context {
	if r == nil {
		return ctx
	}
	var v callctx.Value
	if old := callctx.From(ctx); old != nil {
		v = *old
	}
	for also := v.Route; also != nil; also = also.Also {
		if also == &r.r {
			return ctx // it would be told in a circle
		}
	}
	r.r.Also, v.Route = v.Route, &r.r
	return callctx.With(ctx, v)
}

// ID returns the id of the server, "" if the call went nowhere yet.
func (r *Route) ID() string {
	if h := r.r.Last(); h != nil {
		return h.Place.ID
	}
	return ""
}

// Addr returns the address of the server, "" if the call went nowhere yet.
func (r *Route) Addr() string {
	if h := r.r.Last(); h != nil {
		return h.Addr
	}
	return ""
}

// Why a call went where it went.
const (
	WhyRoundRobin = "round_robin" // it had no affinity, or was the first of a session without a key
	WhyID         = "id"          // it named that server
	WhySession    = "session"     // its session lives there
	WhyHome       = "home"        // that is the home of its key
	WhyRehomed    = "rehomed"     // its server was gone, and this is the home that it has now
	WhySpilled    = "spilled"     // its home was full
	WhyMoved      = "moved"       // a server said that the state is there
)

// Reason returns why the call went there, one of the constants that begin with Why; ""
// if it went nowhere yet.
func (r *Route) Reason() string {
	if h := r.r.Last(); h != nil {
		return h.Reason.String()
	}
	return ""
}

// Waited reports whether the last attempt had to wait for a server to be READY.
func (r *Route) Waited() bool {
	h := r.r.Last()
	return h != nil && h.Waited
}

// Attempts returns how many times the call was sent on its way.
func (r *Route) Attempts() int { return r.r.Hops() }

// String returns all of it, like "session game-1 10.0.0.7:7000, waited".
func (r *Route) String() string {
	h := r.r.Last()
	if h == nil {
		return "nowhere yet"
	}
	s := fmt.Sprintf("%v %s %s", h.Reason, h.Place.ID, h.Addr)
	if h.Waited {
		s += ", waited"
	}
	return s
}
