package stickybalancer

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/metadata"

	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/session"
)

// What follows are calls that the short cut must leave alone. That it is no other
// way for the rest is part of TestThePolicyIsTheModel.

func TestACallThatFollowsAMoveTeachesItsSession(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		d.up("a", "b")
		s := new(session.Session)
		ctx := callctx.With(bg, callctx.Value{ID: "b", Session: s, Moved: true})
		r, err := d.current().Picker.Pick(balancer.PickInfo{Ctx: ctx})
		require.NoError(t, err)
		require.Equal(t, "b", r.SubConn.(*fakeConn).addr)
		require.NotNil(t, r.Done, "it learns from how the call ends")
		require.Equal(t, "b", s.Bind(d.lb.(*policy).target).Load().Place.ID)
	})
}

// The mark says that there are no default headers, and nothing of others.
func TestAMarkedCallIsLookedAtForOtherHeaders(t *testing.T) {
	drive(t, `{"idHeader": "x-server"}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		d.up("a", "b")
		ctx := callctx.WithNoHeaders(metadata.AppendToOutgoingContext(bg, "x-server", "b"))
		for range 4 {
			require.Equal(t, "b", d.server(ctx))
		}
	})
}

func TestLazyConnectsOneMoreAside(t *testing.T) {
	drive(t, `{"connect": "LAZY"}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		d.pick(must("a"))
		synctest.Wait()
		d.up("a")
		require.Nil(t, d.open("b"))
		require.Equal(t, "a", d.server(callctx.WithNoHeaders(bg)))
		synctest.Wait()
		require.NotNil(t, d.open("b"), "nobody connects b")
	})
}

func TestAnObservedCallTakesOneTurn(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		d.up("a", "b")
		ctx := callctx.With(bg, callctx.Value{Route: new(callctx.Route)})
		first := d.server(ctx)
		require.NotEqual(t, first, d.server(ctx))
		require.Equal(t, first, d.server(ctx))
	})
}
