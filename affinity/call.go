package affinity

import (
	"context"
	"fmt"
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
	ctx     context.Context // without what goes out
	value   *callctx.Value  // nil if ctx has none
	binding *session.Binding
	keep    bool // streams of a session that has moved
}

// channelTarget is a channel's canonical target. Interceptors mostly belong to one
// channel, so one is remembered: it is put together anew each time that it is asked.
type channelTarget struct {
	cc     *grpc.ClientConn
	target session.Target
}

func (o *clientOptions) newCall(ctx context.Context, cc *grpc.ClientConn) call {
	c := call{ctx: ctx, value: callctx.From(ctx), keep: o.keepStreams}
	if c.value == nil || c.value.Session == nil || c.value.ID != "" || cc == nil {
		return c
	}
	t := o.target.Load()
	if t == nil || t.cc != cc {
		t = &channelTarget{cc, unique.Make(cc.CanonicalTarget())}
		o.target.Store(t)
	}
	c.binding = c.value.Session.Bind(t.target)
	return c
}

// session returns what the call's session knows of the channel's target, nil if the
// call does not go by a session.
func (c *call) session() *session.Binding { return c.binding }

// name is what the session's server calls itself, if only a proxy can find it.
func (c *call) name() string {
	if s := c.binding.Load(); s != nil && s.Place != nil {
		return s.Place.Name
	}
	return ""
}

// invoke makes a unary call of a session and learns from the answer what the picker
// cannot know.
func (c *call) invoke(do func(...grpc.CallOption) error) error {
	var header, trailer metadata.MD
	err := do(grpc.Header(&header), grpc.Trailer(&trailer))
	c.learn(header, trailer)
	return err
}

func (c *call) learn(header, trailer metadata.MD) {
	name := signer(header, trailer)
	if name != "" {
		if s := c.binding.Load(); s == nil || s.Place != nil && (s.Place.Bare || s.Place.Name != "") {
			c.binding.Answered(name)
		}
	}
	if released(trailer) {
		s := c.binding.Load()
		if s != nil && (name == "" || s.Place == nil || s.Place.Called() == name) {
			c.binding.Forget(s)
		}
	}
}

// signer returns the id by which the server signed its answer, "" if it did not, or
// not with one that can be sent back.
func signer(header, trailer metadata.MD) string {
	ids := header[IDHeader]
	if len(ids) == 0 {
		ids = trailer[IDHeader]
	}
	if len(ids) == 0 || problem(ids[0]) != "" {
		return ""
	}
	return ids[0]
}

// follow returns the context of the call that goes where err says that the state is.
func (c *call) follow(err error) (context.Context, bool) {
	if status.Code(err) != codes.FailedPrecondition || c.ctx.Err() != nil {
		return nil, false
	}
	id, ok := MovedTo(err)
	if !ok || id == "" {
		return nil, false
	}
	var v callctx.Value
	if c.value != nil {
		v = *c.value
	}
	if v.Required {
		return nil, false
	}
	v.ID, v.Required, v.Moved, v.NoHeaders = id, true, true, false
	if c.binding == nil {
		v.Session = nil // the id that the call came with won over it
	}
	return callctx.With(c.ctx, v), true
}

// followed returns the error of the call that went where first said.
func (c *call) followed(first, second error) error {
	id, ok := MovedTo(second)
	if !ok || second == nil {
		return second
	}
	from, _ := MovedTo(first)
	if c.binding != nil && id != "" {
		c.binding.Send(id)
	}
	return movedStatus(codes.FailedPrecondition, id,
		fmt.Sprintf("the state was said to be on server %q, which says that it is on %q", from, id))
}
