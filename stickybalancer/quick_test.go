package stickybalancer

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/metadata"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/metricstest"
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

// A stream was told first where the state is: by its id alone.
func TestACallThatFollowsAMoveKnowsTheStartOfItsServer(t *testing.T) {
	rec := new(metricstest.Recorder)
	driveWith(t, listRecorder{rec}, `{}`, func(t *testing.T, d *driver) {
		start := func(n int64) func(*endpointsmeta.Meta) { return func(m *endpointsmeta.Meta) { m.Incarnation = n } }
		d.list(at("a", "a", start(1)), at("b", "b", start(2)))
		d.up("a", "b")
		s := new(session.Session)
		d.end(callctx.With(bg, callctx.Value{ID: "a", Session: s, Moved: true}))(answered)
		b := s.Bind(d.lb.(*policy).target)
		st := b.Load()
		b.Send(st, st.Place, "b")
		d.end(callctx.With(bg, callctx.Value{ID: "b", Session: s, Moved: true, Required: true}))(answered)
		require.Equal(t, "b", b.Lives().ID)
		require.EqualValues(t, 2, b.Lives().Incarnation, "or nobody would see that it restarts")
		require.EqualValues(t, 1, rec.Collect()[metricstest.Key(metricPrefix+"rehomed_sessions", d.lb.(*policy).target.Value(), "moved")])
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
