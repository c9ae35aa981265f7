package affinity_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

const grace = 10 * time.Second

// inDrain runs f in a world whose server a has grace for its streams once drain is
// called.
func inDrain(t *testing.T, f func(t *testing.T, w *world, drain func())) {
	t.Helper()
	inEmptyWorld(t, func(t *testing.T, w *world) {
		ctx, drain := context.WithCancel(bg)
		defer drain()
		w.start("a", affinity.WithDrain(ctx, grace))
		w.start("b")
		w.list("a", "b")
		f(t, w, drain)
	}, stickybalancer.Config{}.ServiceConfig())
}

// endsDrained requires that err ends the stream of a server that drains.
func endsDrained(t *testing.T, err error) {
	t.Helper()
	require.Equal(t, codes.Aborted, status.Code(err), "%v", err)
	id, ok := affinity.MovedTo(err)
	require.True(t, ok)
	require.Empty(t, id)
}

// begin sends one message, so that the handler runs.
func begin(t *testing.T, w *world, ctx context.Context) bidi {
	t.Helper()
	ss := w.open(ctx)
	require.NoError(t, ss.Send(&testpb.StreamingOutputCallRequest{}))
	_, err := ss.Recv()
	require.NoError(t, err)
	return ss
}

func TestStreamsOfAServerThatDrainsEndAfterTheGrace(t *testing.T) {
	hello := func(f func(ss grpc.ServerStream) error) func(ss grpc.ServerStream) error {
		return func(ss grpc.ServerStream) error {
			if err := ss.SendMsg(said("a")); err != nil {
				return err
			}
			return f(ss)
		}
	}
	for _, tc := range []struct {
		name    string
		handler func(ss grpc.ServerStream) error
	}{
		{"in RecvMsg", func(ss grpc.ServerStream) error {
			for {
				if err := ss.RecvMsg(new(testpb.StreamingOutputCallRequest)); err != nil {
					return err
				}
			}
		}},
		{"in a loop that sends", func(ss grpc.ServerStream) error {
			for {
				if err := ss.SendMsg(said("tick")); err != nil {
					return err
				}
				time.Sleep(100 * time.Millisecond)
			}
		}},
		{"waiting for its context", func(ss grpc.ServerStream) error {
			<-ss.Context().Done()
			return ss.Context().Err()
		}},
		{"waiting for its context, and content with it", func(ss grpc.ServerStream) error {
			<-ss.Context().Done()
			return nil
		}},
		{"with an error of its own", func(ss grpc.ServerStream) error {
			return errors.Join(ss.RecvMsg(new(testpb.StreamingOutputCallRequest)),
				ss.RecvMsg(new(testpb.StreamingOutputCallRequest)), errors.New("mine"))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inDrain(t, func(t *testing.T, w *world, drain func()) {
				s, m := w.sessionAt("a")
				w.game("a").onStream(hello(tc.handler))
				ss := begin(t, w, s.Context(bg))
				start := time.Now()
				drain()
				var err error
				for err == nil {
					_, err = ss.Recv()
				}
				endsDrained(t, err)
				require.InDelta(t, grace, time.Since(start), float64(100*time.Millisecond))

				w.game("a").onStream(nil)
				w.list("b")
				w.stop("a")
				a := bidiShape.call(s.Context(bg), w.client)
				require.NoError(t, a.err)
				require.Equal(t, "b", s.ID(worldTarget))
				m.are(t, "a b drained")
			})
		})
	}
}

func TestAStreamThatEndsInsideTheGraceKeepsItsStatus(t *testing.T) {
	for name, want := range map[string]error{"OK": nil, "an error": status.Error(codes.NotFound, "gone")} {
		t.Run(name, func(t *testing.T) {
			inDrain(t, func(t *testing.T, w *world, drain func()) {
				s, m := w.sessionAt("a")
				w.game("a").onStream(func(ss grpc.ServerStream) error {
					if err := ss.SendMsg(said("a")); err != nil {
						return err
					}
					<-affinity.Draining(ss.Context())
					time.Sleep(grace - time.Second)
					if err := ss.RecvMsg(new(testpb.StreamingOutputCallRequest)); err != nil {
						return err
					}
					if err := ss.SendMsg(said("bye")); err != nil {
						return err
					}
					return want
				})
				ss := begin(t, w, s.Context(bg))
				start := time.Now()
				drain()
				got, err := ss.Recv()
				require.NoError(t, err)
				require.Equal(t, "bye", string(got.GetPayload().GetBody()))
				require.Equal(t, grace-time.Second, time.Since(start))
				_, err = ss.Recv()
				if want == nil {
					require.Equal(t, io.EOF, err)
				} else {
					require.Equal(t, status.Code(want), status.Code(err))
				}
				require.Equal(t, "a", s.ID(worldTarget))
				m.are(t)
			})
		})
	}
}

func TestAHandlerThatKnowsWhereItsStateGoesMaySaySo(t *testing.T) {
	inDrain(t, func(t *testing.T, w *world, drain func()) {
		s, m := w.sessionAt("a")
		w.game("a").onStream(func(ss grpc.ServerStream) error {
			if err := ss.SendMsg(said("a")); err != nil {
				return err
			}
			<-ss.Context().Done()
			return affinity.Moved("b")
		})
		ss := begin(t, w, s.Context(bg))
		drain()
		_, err := ss.Recv()
		require.Equal(t, codes.FailedPrecondition, status.Code(err))
		w.game("b").onStream(echo("b"))
		ctx, cancel := context.WithCancel(s.Context(bg))
		defer cancel()
		w.says("b", w.open(ctx))
		m.are(t, "a b moved")
	})
}

func TestStreamsThatAreOpenedAfterTheGraceEndAtOnce(t *testing.T) {
	inDrain(t, func(t *testing.T, w *world, drain func()) {
		ctx := affinity.With(bg, "a")
		drain()
		synctest.Wait()
		time.Sleep(grace - time.Second)
		require.NoError(t, bidiShape.call(ctx, w.client).err)
		time.Sleep(time.Second)
		synctest.Wait()
		before := w.game("a").served()
		for _, sh := range streamShapes {
			start := time.Now()
			endsDrained(t, sh.call(ctx, w.client).err)
			require.Zero(t, time.Since(start))
		}
		require.Equal(t, before, w.game("a").served(), "no handler runs")
	})
}

func TestASessionThatCameTooLateGoesElsewhereWithoutAMove(t *testing.T) {
	inDrain(t, func(t *testing.T, w *world, drain func()) {
		drain()
		synctest.Wait()
		time.Sleep(grace)
		synctest.Wait()
		for _, s := range []*affinity.Session{affinity.NewSession(""), affinity.NewSession("k")} {
			m := watchMoves(s)
			for range 4 {
				a := bidiShape.call(s.Context(bg), w.client)
				if a.err != nil {
					endsDrained(t, a.err)
					require.Empty(t, s.ID(worldTarget), "it did not arrive")
				}
			}
			m.are(t)
		}
	})
}

func TestUnaryCallsOfAServerThatDrainsGoOn(t *testing.T) {
	inDrain(t, func(t *testing.T, w *world, drain func()) {
		w.game("a").onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
			require.Nil(t, affinity.Draining(ctx))
			time.Sleep(grace)
			return ctx.Err()
		})
		drain()
		for range 3 {
			w.reaches("a", affinity.With(bg, "a"))
		}
	})
}

func TestANegativeGraceIsNone(t *testing.T) {
	inEmptyWorld(t, func(t *testing.T, w *world) {
		ctx, drain := context.WithCancel(bg)
		defer drain()
		w.start("a", affinity.WithDrain(ctx, -time.Second)).onStream(sits)
		w.list("a")
		ss := begin(t, w, bg)
		start := time.Now()
		drain()
		_, err := ss.Recv()
		endsDrained(t, err)
		require.Zero(t, time.Since(start))
	}, stickybalancer.Config{}.ServiceConfig())
}

func TestWithoutADrainNothingLeaves(t *testing.T) {
	inEmptyWorld(t, func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(bg)
		cancel()
		var none context.Context
		g := w.start("a", affinity.WithDrain(ctx, 0), affinity.WithDrain(none, 0))
		g.onStream(func(ss grpc.ServerStream) error {
			if affinity.Draining(ss.Context()) != nil {
				return errors.New("drains")
			}
			return echo("a")(ss)
		})
		w.list("a")
		require.NoError(t, bidiShape.call(bg, w.client).err)
	}, stickybalancer.Config{}.ServiceConfig())
}

func TestStreamsOfADrainAreSignedAndHaveTheirKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, drain := context.WithCancel(t.Context())
		var got affinity.Affinity
		c := start(t, &service{stream: func(ss grpc.ServerStream, reply any) error {
			got, _ = affinity.FromContext(ss.Context())
			if affinity.Draining(ss.Context()) == nil {
				return errors.New("has no drain")
			}
			return ss.SendMsg(reply)
		}}, affinity.ServerOptions(affinity.WithServerID(self), affinity.WithDrain(ctx, 0)), affinity.DialOptions()...)
		for _, sh := range streamShapes {
			a := sh.call(affinity.WithKey(bg, "k"), c)
			require.NoError(t, a.err)
			require.Equal(t, []string{self}, a.header[affinity.IDHeader], sh.name)
			require.Equal(t, affinity.Affinity{Key: "k"}, got)
		}
		drain()
		synctest.Wait()
		for _, sh := range streamShapes {
			a := sh.call(bg, c)
			endsDrained(t, a.err)
			require.Equal(t, []string{self}, a.trailer[affinity.IDHeader], sh.name)
		}
	})
}
