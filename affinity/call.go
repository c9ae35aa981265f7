package affinity

import (
	"context"
	"fmt"
	"slices"
	"time"
	"unique"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/session"
)

// call is one call as the client interceptors see it.
type call struct {
	ctx   context.Context // without what goes out
	value *callctx.Value  // nil if ctx has none
	begun time.Time
	asked string // the server to which another one sent the call, "" if none did

	// For a call that goes by a session, what that knows of the channel's target.
	binding *session.Binding // nil if there is no session
	was     *session.State   // when the call began
	route   *callctx.Route   // nil if was tells where it goes
}

// channelTarget is a channel's canonical target. Interceptors mostly belong to one
// channel, so one is remembered: it is put together anew each time that it is asked.
type channelTarget struct {
	cc     *grpc.ClientConn
	target session.Target
}

func (o *clientOptions) newCall(ctx context.Context, cc *grpc.ClientConn) call {
	c := call{ctx: ctx, value: callctx.From(ctx), begun: time.Now()}
	if c.value == nil || c.value.Session == nil || c.value.ID != "" || cc == nil {
		return c
	}
	t := o.target.Load()
	if t == nil || t.cc != cc {
		t = &channelTarget{cc, unique.Make(cc.CanonicalTarget())}
		o.target.Store(t)
	}
	c.binding = c.value.Session.Bind(t.target)
	c.was = c.binding.Load()
	return c
}

// trace has the balancer note where the call goes.
func (c *call) trace() {
	v := *c.value
	c.route = &callctx.Route{Also: v.Route} // that one may be shared
	v.Route = c.route
	c.ctx = callctx.With(c.ctx, v)
}

// at returns the server that the balancer chose, nil if it was a proxy that did. It may
// be wrong if the session is not in the state was any more.
func (c *call) at() *session.Place {
	if c.route != nil {
		if hop := c.route.Last(); hop != nil {
			return hop.Place
		}
		return nil
	}
	if c.was.Place.Name() != "" {
		return nil
	}
	return c.was.Place
}

// name is the id that goes out for the call's session: what its server calls itself, if
// only a proxy can find it; and without a key that of its server, which could not tell
// that the call belongs anywhere.
func (c *call) name() string {
	s := c.binding.Load()
	switch {
	case s == nil:
		return ""
	case s.Place != nil && s.Place.Name() != "":
		return s.Place.Name()
	case c.value.Key != "":
		return ""
	}
	return s.Wanted()
}

// invoke makes a unary call of a session and learns from the answer what the balancer
// cannot know.
func (c *call) invoke(do func(context.Context, ...grpc.CallOption) error) error {
	if c.route == nil && (c.was == nil || !c.was.Confirmed || c.was.Place.Bare()) {
		c.trace()
	}
	out, err := outgoing(c.ctx, c.name())
	if err != nil {
		return err
	}
	var header, trailer metadata.MD
	err = do(out, grpc.Header(&header), grpc.Trailer(&trailer))
	c.learn(c.at(), header, trailer, err)
	return err
}

// learn takes in an answer of the server at a place, err being the status that it ended
// with.
func (c *call) learn(at *session.Place, header, trailer metadata.MD, err error) {
	name := signer(header, trailer)
	if name == "" && at == nil && err == nil {
		name = c.asked // nobody else answers for it
	}
	if at != nil {
		at.Signed(name)
	}
	if _, moved := session.Elsewhere(err); name != "" && !moved {
		c.binding.Answered(c.was, at, name)
	}
	if released(trailer) {
		c.binding.Released(c.was, at, name)
	}
}

// signer returns the id by which the server signed its answer, "" if it did not, or
// not with one that can be sent back.
func signer(header, trailer metadata.MD) string {
	ids := header[IDHeader]
	if len(ids) == 0 {
		ids = trailer[IDHeader]
	}
	if len(ids) == 0 || unfit(ids[0]) != "" {
		return ""
	}
	return ids[0]
}

// follow returns the call that goes where err says that the state is.
func (c *call) follow(err error) (call, bool) {
	if status.Code(err) != codes.FailedPrecondition || c.ctx.Err() != nil {
		return call{}, false
	}
	id, ok := MovedTo(err)
	if !ok || id == "" {
		return call{}, false
	}
	var v callctx.Value
	if c.value != nil {
		v = *c.value
	}
	if v.Required || slices.Contains(v.Not, id) {
		return call{}, false
	}
	v.ID, v.Required, v.Moved, v.NoHeaders = id, true, true, false
	if c.binding == nil {
		v.Session = nil // the id that the call came with won over it
	}
	to := call{asked: id, value: &v, binding: c.binding, was: c.binding.Load()}
	if to.ctx = callctx.With(c.ctx, v); to.binding != nil {
		to.trace()
	}
	return to, true
}

// limit keeps a second call within the time that the service config gives the method,
// which gRPC counts anew for each call.
func (c *call) limit(cc *grpc.ClientConn, method string, begun time.Time) context.CancelFunc {
	if cc == nil {
		return func() {}
	}
	mc := cc.GetMethodConfig(method)
	if mc.Timeout == nil {
		return func() {}
	}
	var cancel context.CancelFunc
	c.ctx, cancel = context.WithDeadline(c.ctx, begun.Add(*mc.Timeout))
	return cancel
}

// followed returns the error of the call that went where first said.
func (c *call) followed(first, second error) error {
	id, ok := MovedTo(second)
	if !ok || id == "" {
		return second
	}
	from, _ := MovedTo(first)
	if c.binding != nil {
		c.binding.Send(c.was, c.at(), id)
	}
	return movedStatus(codes.FailedPrecondition, id,
		fmt.Sprintf("the state was said to be on server %q, which says that it is on %q", from, id))
}
