package affinity_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
)

func logout(ctx context.Context, _ *testpb.SimpleRequest) error { return affinity.Release(ctx) }

func TestAReleasedSessionLivesNowhere(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		w.game("a").onUnary(logout)
		w.reaches("a", s.Context(bg))
		require.Empty(t, s.ID(worldTarget))
		w.stop("a")
		_, err := w.call(s.Context(bg))
		require.NoError(t, err)
		require.NotEmpty(t, s.ID(worldTarget))
		m.are(t) // it was a first call: nothing was left behind
	})
}

func TestASessionMayBeReleasedByItsFirstCall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := affinity.NewSession(w.keyAt("a"))
		w.game("a").onUnary(logout)
		w.reaches("a", s.Context(bg))
		require.Empty(t, s.ID(worldTarget))
	})
}

func TestAHandlerThatFailsReleasesToo(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, _ := w.sessionAt("a")
		w.game("a").onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
			return errors.Join(affinity.Release(ctx), status.Error(codes.Unauthenticated, "who"))
		})
		_, err := w.call(s.Context(bg))
		require.Error(t, err)
		require.Empty(t, s.ID(worldTarget))
	})
}

func TestReleaseForgetsOnlyTheServerThatAnswered(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		release := make(chan struct{})
		w.game("a").onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
			<-release
			return affinity.Release(ctx)
		})
		done := make(chan error)
		go func() {
			_, err := w.call(s.Context(bg))
			done <- err
		}()
		synctest.Wait()
		w.game("a").onUnary(func(context.Context, *testpb.SimpleRequest) error { return affinity.Moved("b") })
		w.reaches("b", s.Context(bg))
		close(release)
		require.NoError(t, <-done)
		require.Equal(t, "b", s.ID(worldTarget))
		m.are(t, "a b moved")
	})
}

func TestReleaseForgetsOnlyTheChannelsTarget(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		text, err := living(w.keyAt("a"), map[string]place{"etcd:///chat": {id: "chat-1"}, worldTarget: {id: "a"}}).MarshalText()
		require.NoError(t, err)
		s := affinity.NewSession("")
		require.NoError(t, s.UnmarshalText(text))
		w.game("a").onUnary(logout)
		w.reaches("a", s.Context(bg))
		require.Equal(t, map[string]place{"etcd:///chat": {id: "chat-1"}}, places(s))
	})
}

func TestAStreamReleasesAtItsEnd(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		w.game("a").onStream(func(ss grpc.ServerStream) error {
			if err := affinity.Release(ss.Context()); err != nil {
				return err
			}
			return echo("a")(ss)
		})
		ss := w.open(s.Context(bg))
		w.says("a", ss)
		require.Equal(t, "a", s.ID(worldTarget))
		require.NoError(t, ss.CloseSend())
		_, err := ss.Recv()
		require.Error(t, err)
		require.Empty(t, s.ID(worldTarget))
		m.are(t)
	})
}

func TestAStreamReleasesOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, _ := w.sessionAt("a")
		w.game("a").onStream(func(ss grpc.ServerStream) error { return affinity.Release(ss.Context()) })
		ss := w.open(s.Context(bg))
		_, err := ss.Recv()
		require.Error(t, err)
		require.Empty(t, s.ID(worldTarget))
		w.reaches("a", s.Context(bg))
		_, err = ss.Recv() // who reads on learns nothing new
		require.Error(t, err)
		require.Equal(t, "a", s.ID(worldTarget))
	})
}

func TestStreamsGoOnWhenASessionIsReleased(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		w.game("a").onStream(echo("a"))
		ss := w.open(s.Context(bg))
		w.says("a", ss)
		w.game("a").onUnary(logout)
		w.reaches("a", s.Context(bg))
		w.game("a").onUnary(func(context.Context, *testpb.SimpleRequest) error { return affinity.Moved("b") })
		w.reaches("b", s.Context(bg)) // it lives elsewhere now
		w.says("a", ss)
		m.are(t)
		require.NoError(t, ss.CloseSend())
		_, err := ss.Recv()
		require.Error(t, err)
		require.Equal(t, "b", s.ID(worldTarget))
	})
}

func TestReleaseOutsideAHandlerIsAnError(t *testing.T) {
	require.ErrorContains(t, affinity.Release(bg), "affinity: Release: the context must be that of a handler")
	inWorld(t, func(t *testing.T, w *world) {
		var ctx context.Context
		w.game("a").onUnary(func(c context.Context, _ *testpb.SimpleRequest) error {
			ctx = c
			return nil
		})
		w.reaches("a", affinity.With(bg, "a"))
		synctest.Wait()
		require.ErrorContains(t, affinity.Release(ctx), "affinity: Release: ")
	})
}

// How a server that drains hands a session over: it saves the state, and lets go.
func TestASessionThatADrainingServerReleasesGoesOnElsewhere(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		w.game("a").onUnary(logout)
		w.drain("a", "b", "c")
		w.reaches("a", s.Context(bg)) // which saves
		for range 3 {
			server, err := w.call(s.Context(bg))
			require.NoError(t, err)
			require.NotEqual(t, "a", server)
			require.Equal(t, server, s.ID(worldTarget))
		}
		m.are(t)
	})
}
