package affinity_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

type bidi = testpb.TestService_FullDuplexCallClient

// sits is a handler that sends one message and waits for the end.
func sits(ss grpc.ServerStream) error {
	if err := ss.SendMsg(said("hello")); err != nil {
		return err
	}
	<-ss.Context().Done()
	return ss.Context().Err()
}

// leaves makes s leave a for b, by way of a unary call.
func (w *world) leaves(s *affinity.Session) {
	w.t.Helper()
	w.game("a").onUnary(func(context.Context, *testpb.SimpleRequest) error { return affinity.Moved("b") })
	w.reaches("b", s.Context(bg))
	synctest.Wait()
}

// endsMoved requires that err ends a stream because the session has moved to b.
func endsMoved(t *testing.T, err error) {
	t.Helper()
	require.Equal(t, codes.Aborted, status.Code(err), "%v", err)
	require.Equal(t, `affinity: the session has moved to server "b"`, status.Convert(err).Message())
	id, ok := affinity.MovedTo(err)
	require.True(t, ok)
	require.Equal(t, "b", id)
}

func TestTheFirstMessageOfAStreamConfirmsWhereASessionLives(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.game("a").onStream(echo("a"))
		s := affinity.NewSession(w.keyAt("a"))
		ss := w.open(s.Context(bg))
		synctest.Wait()
		require.Empty(t, s.ID(worldTarget))
		w.says("a", ss)
		require.Equal(t, "a", s.ID(worldTarget))
		w.says("a", ss)
		require.NoError(t, ss.CloseSend())
		_, err := ss.Recv()
		require.Equal(t, io.EOF, err)
		require.Zero(t, openStreams(s))
	})
}

func TestTheHeaderOfAStreamConfirmsWhereASessionLives(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.game("a").onStream(func(ss grpc.ServerStream) error {
			_ = ss.SendHeader(metadata.Pairs("x", "1"))
			<-ss.Context().Done()
			return nil
		})
		s := affinity.NewSession(w.keyAt("a"))
		ctx, cancel := context.WithCancel(s.Context(bg))
		defer cancel()
		header, err := w.open(ctx).Header()
		require.NoError(t, err)
		require.Equal(t, []string{"1"}, header["x"])
		require.Equal(t, "a", s.ID(worldTarget))
	})
}

func TestAStreamThatGoesWhereAMoveSaidConfirmsItWithItsFirstMessage(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		w.game("a").fails(affinity.Moved("b"))
		_, err := w.open(s.Context(bg)).Recv()
		require.Error(t, err)
		w.game("b").onStream(echo("b"))
		ctx, cancel := context.WithCancel(s.Context(bg))
		defer cancel()
		w.says("b", w.open(ctx))
		require.Equal(t, "b", s.ID(worldTarget), "while the stream is open")
		m.are(t, "a b moved")
	})
}

func TestAStreamEndsWhenItsSessionMoves(t *testing.T) {
	for name, open := range map[string]func(w *world, ctx context.Context) (recv func() error){
		"bidirectional": func(w *world, ctx context.Context) func() error {
			ss := w.open(ctx)
			return func() error { _, err := ss.Recv(); return err }
		},
		"server": func(w *world, ctx context.Context) func() error {
			ss, err := w.client.StreamingOutputCall(ctx, &testpb.StreamingOutputCallRequest{})
			require.NoError(w.t, err)
			return func() error { _, err := ss.Recv(); return err }
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				s, m := w.sessionAt("a")
				w.game("a").onStream(sits)
				recv := open(w, s.Context(bg))
				require.NoError(t, recv())
				got := make(chan error, 1)
				go func() { got <- recv() }()
				synctest.Wait()
				w.leaves(s)
				endsMoved(t, <-got)
				endsMoved(t, recv()) // once more
				require.Zero(t, openStreams(s))
				m.are(t, "a b moved")
			})
		})
	}
}

func TestAClientStreamEndsWhenItsSessionMoves(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, _ := w.sessionAt("a")
		w.game("a").onStream(func(ss grpc.ServerStream) error {
			<-ss.Context().Done()
			return nil
		})
		ss, err := w.client.StreamingInputCall(s.Context(bg))
		require.NoError(t, err)
		require.NoError(t, ss.Send(&testpb.StreamingInputCallRequest{}))
		w.leaves(s)
		endsMoved(t, ss.Send(&testpb.StreamingInputCallRequest{}))
		_, err = ss.CloseAndRecv()
		endsMoved(t, err)
	})
}

func TestASendThatBlocksEndsWhenTheSessionMoves(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, _ := w.sessionAt("a")
		w.game("a").onStream(func(ss grpc.ServerStream) error { // reads nothing
			<-ss.Context().Done()
			return nil
		})
		ss := w.open(s.Context(bg))
		got := make(chan error, 1)
		go func() {
			for {
				if err := ss.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: make([]byte, 1<<14)}}); err != nil {
					got <- err
					return
				}
			}
		}()
		synctest.Wait()
		require.Empty(t, got)
		w.leaves(s)
		endsMoved(t, <-got)
		_, err := ss.Recv()
		endsMoved(t, err)
	})
}

func TestAStreamWhoseSessionHadNotArrivedEndsWhenItLivesElsewhere(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.game("a").onStream(echo("a"))
		s := affinity.NewSession(w.keyAt("a"))
		m := watchMoves(s)
		ss := w.open(s.Context(bg)) // unanswered
		synctest.Wait()
		w.leaves(s)
		_, err := ss.Recv()
		endsMoved(t, err)
		m.are(t)
	})
}

func TestAStreamEndsWhenItsServerHasRestarted(t *testing.T) {
	// Through a proxy or a partition it may be that only the balancer has noticed.
	inWorld(t, func(t *testing.T, w *world) {
		s, _ := w.sessionAt("b")
		w.game("b").onStream(echo("b"))
		ss := w.open(s.Context(bg))
		w.says("b", ss)
		w.stop("b")
		_, err := ss.Recv()
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.Zero(t, openStreams(s))
	})
}

func TestAStatusThatTheServerHadSentWins(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, _ := w.sessionAt("a")
		w.game("a").onStream(func(grpc.ServerStream) error { return status.Error(codes.ResourceExhausted, "full") })
		ss := w.open(s.Context(bg))
		synctest.Wait()
		w.leaves(s)
		_, err := ss.Recv()
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
		require.Equal(t, io.EOF, ss.Send(&testpb.StreamingOutputCallRequest{}), "gRPC's own answer")
	})
}

func TestMovedStreamsMayGoOn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		w.game("a").onStream(echo("a"))
		ss := w.open(s.Context(bg))
		w.says("a", ss)
		w.leaves(s)
		m.are(t, "a b moved")
		w.says("a", ss)
		require.Equal(t, "b", s.ID(worldTarget))
		require.NoError(t, ss.CloseSend())
		_, err := ss.Recv()
		require.Equal(t, io.EOF, err)
		require.Equal(t, "b", s.ID(worldTarget), "its end teaches nothing")
	}, affinity.WithMovedStreams(false))
}

func TestStreamsThatAreWhereTheSessionGoesStay(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, _ := w.sessionAt("a")
		w.game("b").onStream(echo("b"))
		ss := w.open(affinity.With(s.Context(bg), "b")) // not the session's: its id won
		w.says("b", ss)
		w.leaves(s)
		w.says("b", ss)
		own := w.open(s.Context(bg))
		w.says("b", own)
		w.says("b", ss)
		for _, ss := range []bidi{ss, own} {
			require.NoError(t, ss.CloseSend())
			_, err := ss.Recv()
			require.Equal(t, io.EOF, err)
		}
	})
}

func TestAForgottenSessionsStreamsGoOn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		w.game("a").onStream(echo("a"))
		ss := w.open(s.Context(bg))
		w.says("a", ss)
		s.Forget(worldTarget)
		w.leaves(s)
		w.says("a", ss)
		m.are(t)
		require.NoError(t, ss.CloseSend())
		_, err := ss.Recv()
		require.Equal(t, io.EOF, err)
	})
}

func TestNothingIsLeftOfAStream(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(w *world, ss bidi, cancel func()) error
	}{
		{"that was read to its end", func(w *world, ss bidi, _ func()) error {
			_ = ss.CloseSend()
			_, err := ss.Recv()
			if !errors.Is(err, io.EOF) {
				return fmt.Errorf("got %w", err)
			}
			return nil
		}},
		{"that failed", func(w *world, ss bidi, _ func()) error {
			w.stop("a")
			_, err := ss.Recv()
			if status.Code(err) != codes.Unavailable {
				return fmt.Errorf("got %w", err)
			}
			return nil
		}},
		{"that was cancelled and read", func(w *world, ss bidi, cancel func()) error {
			cancel()
			_, err := ss.Recv()
			if status.Code(err) != codes.Canceled {
				return fmt.Errorf("got %w", err)
			}
			return nil
		}},
		{"that was cancelled and left alone", func(w *world, ss bidi, cancel func()) error {
			cancel()
			return nil
		}},
		{"that was left alone as its channel was closed", func(w *world, ss bidi, cancel func()) error {
			return w.conn.Close()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				s, _ := w.sessionAt("a")
				w.game("a").onStream(echo("a"))
				ctx, cancel := context.WithCancel(s.Context(bg))
				defer cancel()
				ss := w.open(ctx)
				w.says("a", ss)
				require.Equal(t, 1, openStreams(s))
				require.NoError(t, tc.end(w, ss, cancel))
				synctest.Wait()
				require.Zero(t, openStreams(s))
			})
		})
	}
}

func TestNothingIsLeftOfAStreamThatWasNotOpened(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := affinity.NewSession("k")
		ctx, cancel := context.WithCancel(s.Context(bg))
		cancel()
		_, err := w.client.FullDuplexCall(ctx)
		require.Equal(t, codes.Canceled, status.Code(err))
		require.Zero(t, openStreams(s))
	})
}

func TestAStreamThatIsRetriedElsewhereIsNotTheOneThatWasLeft(t *testing.T) {
	const retry = `{"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":4,"initialBackoff":"5s","maxBackoff":"5s",
		"backoffMultiplier":1,"retryableStatusCodes":["UNAVAILABLE"]}}],"loadBalancingConfig":[{"custom_round_robin":{"reconnectWindow":"1s"}}]}`
	inEmptyWorld(t, func(t *testing.T, w *world) {
		w.start("a")
		w.start("b")
		w.list("a", "b")
		s, m := w.sessionAt("a")
		w.game("a").onStream(func(ss grpc.ServerStream) error { return status.Error(codes.Unavailable, "busy") })
		w.game("b").onStream(echo("b"))
		var r affinity.Route
		ss := w.open(affinity.Observe(s.Context(bg), &r))
		synctest.Wait()
		require.Equal(t, "session a at-a", r.String())
		w.stop("a")
		time.Sleep(2 * time.Second)
		w.says("b", ss) // the retry went where the session goes, and confirmed it
		require.Equal(t, "rehomed b at-b", r.String())
		require.Equal(t, 2, r.Attempts())
		m.are(t, "a b failed")
		w.says("b", ss)
		require.NoError(t, ss.CloseSend())
		_, err := ss.Recv()
		require.Equal(t, io.EOF, err)
	}, retry)
}

func TestObserveTellsWhereAStreamWentOnceItIsOpen(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, _ := w.sessionAt("a")
		var r, own affinity.Route
		a := bidiShape.call(affinity.Observe(bg, &own), w.client)
		require.NoError(t, a.err)
		require.Equal(t, affinity.WhyRoundRobin, own.Reason())
		ctx, cancel := context.WithCancel(affinity.Observe(s.Context(bg), &r))
		defer cancel()
		w.open(ctx)
		require.Equal(t, "session a at-a", r.String())
		require.Equal(t, "a", r.ID())
		require.Equal(t, "at-a", r.Addr())
		require.Equal(t, affinity.WhySession, r.Reason())
		require.False(t, r.Waited())
	})
}

func TestObserveWithoutARouteIsNothing(t *testing.T) {
	require.Equal(t, bg, affinity.Observe(bg, nil))
	var r affinity.Route
	require.Equal(t, []any{"", "", "", false, 0, "nowhere yet"}, []any{r.ID(), r.Addr(), r.Reason(), r.Waited(), r.Attempts(), r.String()})
	_, ok := affinity.FromContext(affinity.Observe(bg, &r))
	require.False(t, ok, "it says nothing of where a call belongs")
}

func TestARouteThatIsSharedDoesNotMixUpStreams(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, _ := w.sessionAt("a")
		w.game("a").onStream(echo("a"))
		var r affinity.Route
		ss := w.open(affinity.Observe(s.Context(bg), &r))
		w.reaches("b", affinity.Observe(affinity.With(bg, "b"), &r))
		w.says("a", ss)
		w.leaves(s)
		_, err := ss.Recv()
		endsMoved(t, err)
	})
}

func TestManyStreamsAndMovesAtOnce(t *testing.T) {
	inEmptyWorld(t, func(t *testing.T, w *world) {
		for name, next := range map[string]string{"a": "b", "b": "a"} {
			g := w.start(name, affinity.WithServerID(name))
			n := 0
			g.onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
				g.mu.Lock()
				defer g.mu.Unlock()
				if n++; n%5 == 0 {
					return affinity.Moved(next)
				}
				return nil
			})
			g.onStream(echo(name))
		}
		w.list("a", "b")
		s := affinity.NewSession("k")
		var list []affinity.Move
		told := make(chan affinity.Move, 10000)
		s.OnMove(func(m affinity.Move) { told <- m })
		done := make(chan struct{})
		for range 8 {
			go func() {
				defer func() { done <- struct{}{} }()
				for range 30 {
					_, _ = w.call(s.Context(bg))
				}
			}()
			go func() {
				defer func() { done <- struct{}{} }()
				for range 10 {
					ctx, cancel := context.WithCancel(s.Context(bg))
					ss, err := w.client.FullDuplexCall(ctx)
					for range 5 {
						if err == nil {
							_ = ss.Send(&testpb.StreamingOutputCallRequest{})
							_, err = ss.Recv()
						}
					}
					if err != nil && status.Code(err) != codes.Aborted {
						t.Error(err)
					}
					cancel()
				}
			}()
		}
		for range 16 {
			<-done
		}
		synctest.Wait()
		close(told)
		for m := range told {
			list = append(list, m)
		}
		for i, m := range list {
			require.NotEqual(t, m.From, m.To)
			if i > 0 {
				require.Equal(t, list[i-1].To, m.From, "in order, and each one")
			}
		}
		require.NotEmpty(t, list)
		require.Equal(t, list[len(list)-1].To, s.ID(worldTarget))
		require.Zero(t, openStreams(s))
	}, stickybalancer.Config{}.ServiceConfig())
}
