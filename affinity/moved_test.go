package affinity_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

func TestAUnaryCallFollowsMovedUnseen(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		w.game("a").fails(affinity.Moved("b"))
		before := w.game("a").served()
		w.reaches("b", s.Context(bg))
		require.Equal(t, before+1, w.game("a").served())
		require.Equal(t, "b", s.ID(worldTarget))
		for range 3 {
			w.reaches("b", s.Context(bg))
		}
		require.Equal(t, before+1, w.game("a").served(), "later calls go straight there")
		m.are(t, "a b moved")
	})
}

func TestAWrappedMovedIsFollowed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		w.game("a").fails(fmt.Errorf("join room 7: %w", affinity.Moved("b")))
		w.reaches("b", s.Context(bg))
		m.are(t, "a b moved")
	})
}

func TestANewSessionThatIsSentElsewhereHasNotMoved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := affinity.NewSession(w.keyAt("a"))
		m := watchMoves(s)
		w.game("a").fails(affinity.Moved("b"))
		w.reaches("b", s.Context(bg))
		require.Equal(t, "b", s.ID(worldTarget))
		m.are(t)
	})
}

func TestACallWithAKeyAloneFollowsMoved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		key := w.keyAt("a")
		w.game("a").fails(affinity.Moved("b"))
		w.reaches("b", affinity.WithKey(bg, key))
		w.reaches("b", affinity.With(bg, "a"))
		w.reaches("b", metadata.AppendToOutgoingContext(bg, affinity.IDHeader, "a"))
	})
}

func TestACallWithoutAffinityFollowsMoved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.game("a").fails(affinity.Moved("b"))
		w.game("c").fails(affinity.Moved("b"))
		for range 3 {
			w.reaches("b", bg)
		}
	})
}

func TestAnIDThatWonOverASessionTeachesItNothingWhenItIsFollowed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("c")
		w.game("a").fails(affinity.Moved("b"))
		w.reaches("b", affinity.With(s.Context(bg), "a"))
		require.Equal(t, "c", s.ID(worldTarget))
		w.reaches("c", s.Context(bg))
		m.are(t)
	})
}

func TestARequiredCallDoesNotFollowMoved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.game("a").fails(affinity.Moved("b"))
		_, err := w.call(affinity.Require(bg, "a"))
		require.Equal(t, codes.FailedPrecondition, status.Code(err))
		id, ok := affinity.MovedTo(err)
		require.True(t, ok)
		require.Equal(t, "b", id)
		require.Zero(t, w.game("b").served())
	})
}

func TestASecondMovedIsAnErrorThatNamesBoth(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		w.game("a").fails(affinity.Moved("b"))
		w.game("b").fails(affinity.Moved("c"))
		_, err := w.call(s.Context(bg))
		require.Equal(t, codes.FailedPrecondition, status.Code(err))
		require.Equal(t, `affinity: the state was said to be on server "b", which says that it is on "c"`, status.Convert(err).Message())
		id, ok := affinity.MovedTo(err)
		require.True(t, ok)
		require.Equal(t, "c", id)
		m.are(t)

		before := w.game("a").served() + w.game("b").served()
		w.reaches("c", s.Context(bg)) // it is wiser now
		require.Equal(t, before, w.game("a").served()+w.game("b").served())
		m.are(t, "a c moved")
	})
}

func TestAMovedToTheServerThatSaysSoEnds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		w.game("a").fails(affinity.Moved("a"))
		before := w.game("a").served()
		_, err := w.call(s.Context(bg))
		id, ok := affinity.MovedTo(err)
		require.True(t, ok)
		require.Equal(t, "a", id)
		require.Equal(t, before+2, w.game("a").served())
		w.game("a").fails(nil)
		w.reaches("a", s.Context(bg))
		require.Equal(t, "a", s.ID(worldTarget))
		m.are(t)
	})
}

func TestAFailureOfTheServerThatMovedNamesIsTheAnswer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		w.game("a").fails(affinity.Moved("b"))
		w.game("b").fails(status.Error(codes.NotFound, "no such room"))
		_, err := w.call(s.Context(bg))
		require.Equal(t, codes.NotFound, status.Code(err))
		m.are(t, "a b moved") // it answered
	})
}

func TestMovedToAServerThatIsNotThereFailsAndTeachesNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		w.game("a").fails(affinity.Moved("z"))
		_, err := w.call(s.Context(bg))
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.Contains(t, err.Error(), `"z"`)
		require.Equal(t, "a", s.ID(worldTarget))
		w.game("a").fails(nil)
		w.reaches("a", s.Context(bg))
		m.are(t)
	})
}

func TestTheSecondCallHasTheDeadlineOfTheFirst(t *testing.T) {
	const timeout = `{"methodConfig":[{"name":[{}],"timeout":"10s"}],` + `"loadBalancingConfig":[{"custom_round_robin":{}}]}`
	for _, tc := range []struct {
		name, config string
		ctx          func(context.Context) (context.Context, context.CancelFunc)
	}{
		{"of the context", stickybalancer.Config{}.ServiceConfig(), func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 10*time.Second)
		}},
		{"of the service config", timeout, func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithCancel(ctx)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inEmptyWorld(t, func(t *testing.T, w *world) {
				w.start("a")
				w.start("b")
				w.list("a", "b")
				w.game("a").onUnary(func(context.Context, *testpb.SimpleRequest) error {
					time.Sleep(7 * time.Second)
					return affinity.Moved("b")
				})
				w.game("b").onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
					<-ctx.Done()
					return ctx.Err()
				})
				ctx, cancel := tc.ctx(affinity.With(bg, "a"))
				defer cancel()
				start := time.Now()
				_, err := w.client.UnaryCall(ctx, &testpb.SimpleRequest{})
				require.Equal(t, codes.DeadlineExceeded, status.Code(err))
				require.Equal(t, 10*time.Second, time.Since(start))
				require.Equal(t, 1, w.game("b").served())
			}, tc.config)
		})
	}
}

func TestMovedIsNotFollowedWhenTheCallerHasGone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(affinity.With(bg, "a"))
		// The answer is on its way to the caller as that one goes.
		call := affinity.UnaryClientInterceptor()
		n := 0
		err := call(ctx, "/s/m", nil, nil, nil, func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
			n++
			cancel()
			return affinity.Moved("b")
		})
		id, ok := affinity.MovedTo(err)
		require.True(t, ok)
		require.Equal(t, "b", id)
		require.Equal(t, 1, n)
	})
}

func TestTheCallersHeadersAndOptionsHoldForTheSecondCall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, _ := w.sessionAt("a")
		var first, second metadata.MD
		w.game("a").onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
			first, _ = metadata.FromIncomingContext(ctx)
			_ = grpc.SetHeader(ctx, metadata.Pairs("from", "a"))
			return affinity.Moved("b")
		})
		w.game("b").onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
			second, _ = metadata.FromIncomingContext(ctx)
			_ = grpc.SetTrailer(ctx, metadata.Pairs("end", "b"))
			return grpc.SetHeader(ctx, metadata.Pairs("from", "b"))
		})
		ctx := metadata.AppendToOutgoingContext(s.Context(bg), "trace", "1", "trace", "2")
		var header, trailer metadata.MD
		w.reaches("b", ctx) // without options
		s.Forget(worldTarget)
		got, err := w.call(ctx, grpc.Header(&header), grpc.Trailer(&trailer))
		require.NoError(t, err)
		require.Equal(t, "b", got)
		require.Equal(t, []string{"b"}, header["from"])
		require.Equal(t, []string{"b"}, trailer["end"])
		for _, md := range []metadata.MD{first, second} {
			require.Equal(t, []string{"1", "2"}, md["trace"])
			require.Len(t, md[affinity.KeyHeader], 1)
		}
		require.Empty(t, first[affinity.IDHeader])
		require.Equal(t, []string{"b"}, second[affinity.IDHeader])
	})
}

func TestObserveTellsOfBothCalls(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, _ := w.sessionAt("a")
		w.game("a").fails(affinity.Moved("b"))
		for _, ctx := range []context.Context{s.Context(bg), affinity.With(bg, "a")} {
			var r affinity.Route
			w.reaches("b", affinity.Observe(ctx, &r))
			require.Equal(t, "moved b at-b", r.String())
			require.Equal(t, 2, r.Attempts())
		}
	})
}

func TestRetriesGoOnUnderneathMoved(t *testing.T) {
	const retry = `{"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":4,"initialBackoff":"0.1s","maxBackoff":"1s",
		"backoffMultiplier":2,"retryableStatusCodes":["UNAVAILABLE"]}}],"loadBalancingConfig":[{"custom_round_robin":{}}]}`
	inEmptyWorld(t, func(t *testing.T, w *world) {
		for _, name := range []string{"a", "b"} {
			n := 0
			last := map[string]error{"a": affinity.Moved("b"), "b": nil}[name]
			w.start(name, affinity.WithServerID(name)).onUnary(func(context.Context, *testpb.SimpleRequest) error {
				if n++; n%3 != 0 {
					return status.Error(codes.Unavailable, "busy")
				}
				return last
			})
		}
		w.list("a", "b")
		s := affinity.NewSession("")
		var r affinity.Route
		for s.ID(worldTarget) == "" {
			r = affinity.Route{}
			w.reaches("b", affinity.Observe(s.Context(bg), &r))
		}
		require.Contains(t, []int{3, 6}, r.Attempts(), "three at each server that was asked")
		require.Equal(t, "b", s.ID(worldTarget))
	}, retry)
}

func TestAStreamThatIsToldMovedEndsAndTheNextOneGoesThere(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		w.game("a").fails(affinity.Moved("b"))
		ss := w.open(s.Context(bg))
		_, err := ss.Recv()
		require.Equal(t, codes.FailedPrecondition, status.Code(err))
		id, ok := affinity.MovedTo(err)
		require.True(t, ok)
		require.Equal(t, "b", id)
		require.Equal(t, "a", s.ID(worldTarget), "nobody has answered there yet")
		_, err = ss.Recv()
		require.Error(t, err, "a second look changes nothing")

		w.game("b").onStream(echo("b"))
		ss = w.open(s.Context(bg))
		w.says("b", ss)
		require.Equal(t, "b", s.ID(worldTarget))
		m.are(t, "a b moved")
		require.NoError(t, ss.CloseSend())
		_, err = ss.Recv()
		require.Error(t, err)
	})
}

func TestAServerThatTheSessionHasLeftCannotSendItElsewhere(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, m := w.sessionAt("a")
		release := make(chan struct{})
		w.game("a").onStream(func(ss grpc.ServerStream) error {
			<-release
			return affinity.Moved("c")
		})
		w.game("a").onUnary(func(context.Context, *testpb.SimpleRequest) error { return affinity.Moved("b") })
		ss := w.open(s.Context(bg))
		synctest.Wait()
		w.reaches("b", s.Context(bg))
		close(release)
		_, err := ss.Recv()
		id, ok := affinity.MovedTo(err)
		require.True(t, ok)
		require.Equal(t, "c", id, "what it said")
		w.reaches("b", s.Context(bg))
		m.are(t, "a b moved")
	}, affinity.WithMovedStreams(false))
}

func TestMovedRefusesABadID(t *testing.T) {
	for name, id := range map[string]string{
		"empty": "", "too long": strings.Repeat("x", 257), "a space": " a", "not ASCII": "é", "a line": "a\nb",
	} {
		t.Run(name, func(t *testing.T) {
			err := affinity.Moved(id)
			require.Equal(t, codes.Internal, status.Code(err))
			_, ok := affinity.MovedTo(err)
			require.False(t, ok)
		})
	}
}

// movedStatus is a status with these details.
func movedStatus(t testing.TB, code codes.Code, details ...proto.Message) error {
	p := &spb.Status{Code: int32(code), Message: "m"}
	for _, d := range details {
		any, err := anypb.New(d)
		require.NoError(t, err)
		p.Details = append(p.Details, any)
	}
	return status.ErrorProto(p)
}

func movedInfo(id string) *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{Reason: affinity.MovedReason, Domain: affinity.MovedDomain, Metadata: map[string]string{"id": id}}
}

func TestMovedToReadsTheDetailAndNothingElse(t *testing.T) {
	moved := affinity.Moved("b")
	for _, tc := range []struct {
		name string
		err  error
		id   string
		ok   bool
	}{
		{name: "nil"},
		{name: "no status", err: errors.New("moved")},
		{name: "a status without details", err: status.Error(codes.FailedPrecondition, "moved")},
		{name: "Moved", err: moved, id: "b", ok: true},
		{name: "Moved, wrapped", err: fmt.Errorf("a: %w", fmt.Errorf("b: %w", moved)), id: "b", ok: true},
		{name: "Moved, joined", err: errors.Join(errors.New("x"), moved), id: "b", ok: true},
		{name: "another code", err: movedStatus(t, codes.Aborted, movedInfo("b")), id: "b", ok: true},
		{name: "no id", err: movedStatus(t, codes.Aborted, movedInfo("")), ok: true},
		{name: "no metadata", err: movedStatus(t, codes.Aborted, &errdetails.ErrorInfo{Reason: affinity.MovedReason, Domain: affinity.MovedDomain}), ok: true},
		{name: "among others", err: movedStatus(t, codes.Aborted, &errdetails.RetryInfo{}, &errdetails.ErrorInfo{Reason: "QUOTA", Domain: affinity.MovedDomain}, movedInfo("b")), id: "b", ok: true},
		{name: "another reason", err: movedStatus(t, codes.Aborted, &errdetails.ErrorInfo{Reason: "QUOTA", Domain: affinity.MovedDomain, Metadata: map[string]string{"id": "b"}})},
		{name: "another domain", err: movedStatus(t, codes.Aborted, &errdetails.ErrorInfo{Reason: affinity.MovedReason, Domain: "example.com", Metadata: map[string]string{"id": "b"}})},
		{name: "an id that no header carries", err: movedStatus(t, codes.Aborted, movedInfo("a\nb"))},
		{name: "an id that is too long", err: movedStatus(t, codes.Aborted, movedInfo(strings.Repeat("x", 257)))},
		{name: "a detail of an unknown type", err: status.ErrorProto(&spb.Status{Code: 9, Details: []*anypb.Any{{TypeUrl: "x/y.Z", Value: []byte("?")}}})},
		{name: "a detail that is no message", err: status.ErrorProto(&spb.Status{Code: 9, Details: []*anypb.Any{{TypeUrl: "type.googleapis.com/google.rpc.ErrorInfo", Value: []byte("\xff")}}})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id, ok := affinity.MovedTo(tc.err)
			require.Equal(t, tc.ok, ok)
			require.Equal(t, tc.id, id)
		})
	}
}

func FuzzMovedTo(f *testing.F) {
	for _, d := range []proto.Message{movedInfo("b"), movedInfo(""), movedInfo("a\nb"), &errdetails.RetryInfo{}} {
		any, err := anypb.New(d)
		require.NoError(f, err)
		f.Add(uint32(9), any.GetTypeUrl(), any.GetValue())
	}
	f.Add(uint32(0), "", []byte(nil))
	f.Fuzz(func(t *testing.T, code uint32, url string, value []byte) {
		err := status.ErrorProto(&spb.Status{Code: int32(code), Details: []*anypb.Any{{TypeUrl: url, Value: value}}})
		id, ok := affinity.MovedTo(err)
		if !ok {
			require.Empty(t, id)
			return
		}
		if id == "" {
			return
		}
		again, ok := affinity.MovedTo(affinity.Moved(id))
		require.True(t, ok)
		require.Equal(t, id, again, "what is accepted can be said")
	})
}
