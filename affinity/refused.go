package affinity

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/session"
)

// again makes a call again that ended with err, if that says that another server may
// take it. do makes a call.
func (c *call) again(err error, cc *grpc.ClientConn, method string, do func(*call) error) error {
	last := c
	var not, names []string // of those that have refused it
	for n := 0; ; n++ {
		by, ok := refusedHere(err)
		if !ok {
			break
		}
		id := last.refused(by)
		if names = append(names, by); by == "" {
			names[n] = id
		}
		if n == session.MostRefused || c.value != nil && c.value.Required || c.ctx.Err() != nil || slices.Contains(not, id) {
			return refusedStatus(codes.Aborted, "", names...)
		}
		if id != "" {
			not = append(slices.Clip(not), id) // contexts have the old one
		}
		if n == 0 {
			defer c.limit(cc, method, c.begun)()
		}
		past := c.past(not)
		if err = do(&past); err == nil {
			return nil
		}
		last = &past
	}
	to, ok := last.follow(err)
	if !ok {
		return err
	}
	defer to.limit(cc, method, c.begun)()
	second := do(&to)
	if by, ok := refusedHere(second); ok {
		to.refused(by)
		return refusedStatus(codes.Aborted, "", to.asked)
	}
	return to.followed(err, second)
}

// refusedHere reports whether a unary call ended because its server refused it, before
// a handler ran, and what that server calls itself, if it knows.
func refusedHere(err error) (by string, ok bool) {
	if status.Code(err) != codes.FailedPrecondition {
		return "", false
	}
	return session.Fenced(err)
}

// refused makes the call's session leave the server that refused the call, and returns
// that server's id: as the balancer has it, if that is known, else by, which it called
// itself, and which may be "".
func (c *call) refused(by string) (id string) {
	var at *session.Place
	if c.binding != nil || c.route != nil {
		at = c.at()
	}
	if c.binding != nil {
		c.binding.Refused(c.was, at)
	}
	if at != nil {
		return at.ID
	}
	return by
}

// past returns the call that goes past servers, and notes where it goes.
func (c *call) past(not []string) call {
	var v callctx.Value
	if c.value != nil {
		v = *c.value
	}
	v.Not, v.NoHeaders = not, false
	to := call{value: &v, ctx: callctx.With(c.ctx, v), binding: c.binding, was: c.binding.Load(), begun: c.begun}
	to.trace()
	return to
}

// refusedBy says that servers have refused a call.
func refusedBy(ids ...string) string {
	var named []string
	for _, id := range ids {
		if id != "" && !slices.Contains(named, quote(id)) {
			named = append(named, quote(id))
		}
	}
	who := "the server is"
	switch len(named) {
	case 0:
	case 1:
		who = "server " + named[0] + " is"
	default:
		who = "servers " + strings.Join(named, ", ") + " are"
	}
	return fmt.Sprintf("%s out of the registry, and must not serve calls with affinity", who)
}
