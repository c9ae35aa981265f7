package affinity_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
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
)

// keyCalls are those of a key function.
type keyCalls struct {
	mu   sync.Mutex
	list []string
}

// option is a key function that takes the key from the request.
func (k *keyCalls) option() affinity.ClientOption {
	return affinity.WithKeyFunc(func(_ context.Context, method string, req any) string {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.list = append(k.list, fmt.Sprintf("%s %T", method[strings.LastIndex(method, "/")+1:], req))
		switch r := req.(type) {
		case *testpb.SimpleRequest:
			return string(r.GetPayload().GetBody())
		case *testpb.StreamingOutputCallRequest:
			return string(r.GetPayload().GetBody())
		}
		return "by-method"
	})
}

func payload(s string) *testpb.Payload { return &testpb.Payload{Body: []byte(s)} }

// keyed runs f with a client whose key function is k, and a func that returns the key
// of the last call that reached the server.
func keyed(t *testing.T, k *keyCalls, srv *service, f func(t *testing.T, c testpb.TestServiceClient, got func() []string)) {
	var mu sync.Mutex
	var md metadata.MD
	note := func(ctx context.Context) {
		mu.Lock()
		defer mu.Unlock()
		md, _ = metadata.FromIncomingContext(ctx)
	}
	so := []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			note(ctx)
			return h(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(s any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			note(ss.Context())
			return h(s, ss)
		}),
	}
	f(t, start(t, srv, so, affinity.DialOptions(k.option())...), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return md[affinity.KeyHeader]
	})
}

func TestAUnaryCallGetsTheKeyOfItsRequest(t *testing.T) {
	var k keyCalls
	keyed(t, &k, &service{}, func(t *testing.T, c testpb.TestServiceClient, got func() []string) {
		_, err := c.UnaryCall(t.Context(), &testpb.SimpleRequest{Payload: payload("room-1")})
		require.NoError(t, err)
		require.Equal(t, []string{"room-1"}, got())
		_, err = c.UnaryCall(t.Context(), &testpb.SimpleRequest{})
		require.NoError(t, err)
		require.Empty(t, got(), "an empty key is none")
		require.Equal(t, []string{"UnaryCall *grpc_testing.SimpleRequest", "UnaryCall *grpc_testing.SimpleRequest"}, k.list)
	})
}

// asks is a server-streaming method that answers with what it was asked.
type asks struct {
	service
}

func (*asks) StreamingOutputCall(req *testpb.StreamingOutputCallRequest, ss grpc.ServerStreamingServer[testpb.StreamingOutputCallResponse]) error {
	ss.SetTrailer(metadata.Pairs("end", "1"))
	return ss.Send(&testpb.StreamingOutputCallResponse{Payload: req.GetPayload()})
}

func TestAServerStreamGetsTheKeyOfItsRequest(t *testing.T) {
	var k keyCalls
	var keys []string
	c := start(t, &asks{}, []grpc.ServerOption{grpc.ChainStreamInterceptor(func(s any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		keys = metadata.ValueFromIncomingContext(ss.Context(), affinity.KeyHeader)
		return h(s, ss)
	})}, affinity.DialOptions(k.option())...)
	ss, err := c.StreamingOutputCall(t.Context(), &testpb.StreamingOutputCallRequest{Payload: payload("room-1")})
	require.NoError(t, err)
	m, err := ss.Recv()
	require.NoError(t, err)
	require.Equal(t, "room-1", string(m.GetPayload().GetBody()), "the message arrives")
	_, err = ss.Recv()
	require.Equal(t, io.EOF, err)
	require.Equal(t, []string{"1"}, ss.Trailer()["end"])
	require.NotNil(t, ss.Context())
	require.Equal(t, []string{"room-1"}, keys)
	require.Equal(t, []string{"StreamingOutputCall *grpc_testing.StreamingOutputCallRequest"}, k.list)
}

func TestAClientStreamGetsTheKeyOfItsMethodAndOpensAtOnce(t *testing.T) {
	for name, open := range map[string]func(c testpb.TestServiceClient, ctx context.Context) (grpc.ClientStream, error){
		"client": func(c testpb.TestServiceClient, ctx context.Context) (grpc.ClientStream, error) {
			return c.StreamingInputCall(ctx)
		},
		"bidirectional": func(c testpb.TestServiceClient, ctx context.Context) (grpc.ClientStream, error) {
			return c.FullDuplexCall(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var k keyCalls
			keyed(t, &k, &service{}, func(t *testing.T, c testpb.TestServiceClient, got func() []string) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ss, err := open(c, ctx)
				require.NoError(t, err)
				_, err = ss.Header() // nothing has been sent
				require.NoError(t, err)
				require.Equal(t, []string{"by-method"}, got())
				require.Len(t, k.list, 1)
				require.Contains(t, k.list[0], " <nil>")
			})
		})
	}
}

func TestTheKeyFuncIsNotAskedAboutCallsThatSayWhereTheyBelong(t *testing.T) {
	for _, tc := range []struct {
		name string
		ctx  func(context.Context) context.Context
	}{
		{"an id", id("a")},
		{"a key", key("k")},
		{"an id header", header(affinity.IDHeader, "a")},
		{"a key header", header(affinity.KeyHeader, "k")},
		{"a session", affinity.NewSession("k").Context},
		{"a session without a key", affinity.NewSession("").Context},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var k keyCalls
			keyed(t, &k, &service{}, func(t *testing.T, c testpb.TestServiceClient, _ func() []string) {
				for _, sh := range shapes {
					require.NoError(t, sh.call(tc.ctx(t.Context()), c).err, sh.name)
				}
				require.Empty(t, k.list)
			})
		})
	}
}

func TestTheKeyFuncIsAskedWhenHeadersAndContextAreEmpty(t *testing.T) {
	for name, ctx := range map[string]context.Context{
		"cleared":             affinity.WithKey(affinity.WithKey(bg, "k"), ""),
		"empty headers":       metadata.AppendToOutgoingContext(bg, affinity.KeyHeader, "", affinity.IDHeader, ""),
		"a route and no more": affinity.Observe(bg, new(affinity.Route)),
	} {
		t.Run(name, func(t *testing.T) {
			var k keyCalls
			keyed(t, &k, &service{}, func(t *testing.T, c testpb.TestServiceClient, got func() []string) {
				_, err := c.UnaryCall(ctx, &testpb.SimpleRequest{Payload: payload("room-1")})
				require.NoError(t, err)
				require.Equal(t, []string{"room-1"}, got())
			})
		})
	}
}

func TestABadKeyOfAKeyFuncIsInvalid(t *testing.T) {
	var ran bool
	c := start(t, watch(func(context.Context) { ran = true }), nil,
		affinity.DialOptions(affinity.WithKeyFunc(func(context.Context, string, any) string { return "a\nb" }))...)
	for _, sh := range shapes {
		err := sh.call(t.Context(), c).err
		require.Equal(t, codes.InvalidArgument, status.Code(err), sh.name)
		require.Equal(t, `affinity: key in the context "a\nb": byte 1 is not printable ASCII`, status.Convert(err).Message())
	}
	require.False(t, ran)
}

func TestTheLastKeyFuncHoldsAndNilIsNone(t *testing.T) {
	first := affinity.WithKeyFunc(func(context.Context, string, any) string { return "first" })
	last := affinity.WithKeyFunc(func(context.Context, string, any) string { return "last" })
	for _, tc := range []struct {
		opts []affinity.ClientOption
		want []string
	}{
		{[]affinity.ClientOption{first, last}, []string{"last"}},
		{[]affinity.ClientOption{first, affinity.WithKeyFunc(nil)}, nil},
	} {
		var got []string
		c := start(t, watch(func(ctx context.Context) { got = metadata.ValueFromIncomingContext(ctx, affinity.KeyHeader) }), nil,
			affinity.DialOptions(tc.opts...)...)
		for _, sh := range shapes {
			require.NoError(t, sh.call(t.Context(), c).err)
			require.Equal(t, tc.want, got, sh.name)
		}
	}
}

// openLate opens a server stream without a message, as generated code does not.
func openLate(t *testing.T, w *world, ctx context.Context) grpc.ClientStream {
	t.Helper()
	ss, err := w.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/grpc.testing.TestService/StreamingOutputCall")
	require.NoError(t, err)
	return ss
}

var roomRequest = &testpb.StreamingOutputCallRequest{Payload: payload("room-1")}

func TestALateStreamHasTheContextThatItWasGiven(t *testing.T) {
	var k keyCalls
	inWorld(t, func(t *testing.T, w *world) {
		type mark struct{}
		ctx := context.WithValue(bg, mark{}, 1)
		ss := openLate(t, w, ctx)
		require.Equal(t, 1, ss.Context().Value(mark{}))
		require.Nil(t, ss.Trailer())
		require.NoError(t, ss.SendMsg(roomRequest))
		require.Equal(t, 1, ss.Context().Value(mark{}))
		require.NoError(t, ss.CloseSend())
		require.NoError(t, ss.RecvMsg(new(testpb.StreamingOutputCallResponse)))
		require.Equal(t, io.EOF, ss.RecvMsg(new(testpb.StreamingOutputCallResponse)))
	}, k.option())
}

func TestALateStreamWaitsForAnAnswerAsAnOpenOneWould(t *testing.T) {
	var k keyCalls
	inWorld(t, func(t *testing.T, w *world) {
		ss := openLate(t, w, bg)
		got := make(chan error, 2)
		go func() { got <- ss.RecvMsg(new(testpb.StreamingOutputCallResponse)) }()
		go func() {
			_, err := ss.Header()
			got <- err
		}()
		synctest.Wait()
		require.Empty(t, got)
		require.Empty(t, k.list)
		require.NoError(t, ss.SendMsg(roomRequest))
		require.NoError(t, <-got)
		require.NoError(t, <-got)
		require.Equal(t, []string{"StreamingOutputCall *grpc_testing.StreamingOutputCallRequest"}, k.list)
		require.NoError(t, ss.CloseSend())
		require.Equal(t, io.EOF, ss.RecvMsg(new(testpb.StreamingOutputCallResponse)))
	}, k.option())
}

func TestALateStreamEndsWithItsContext(t *testing.T) {
	var k keyCalls
	inWorld(t, func(t *testing.T, w *world) {
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		ss := openLate(t, w, ctx)
		require.Equal(t, codes.DeadlineExceeded, status.Code(ss.RecvMsg(new(testpb.StreamingOutputCallResponse))))
		_, err := ss.Header()
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.Equal(t, codes.DeadlineExceeded, status.Code(ss.SendMsg(roomRequest)))
		require.Equal(t, codes.DeadlineExceeded, status.Code(ss.CloseSend()))
		require.Nil(t, ss.Trailer())
		require.NotNil(t, ss.Context())
	}, k.option())
}

func TestALateStreamMayBeClosedWithoutAMessage(t *testing.T) {
	var k keyCalls
	inWorld(t, func(t *testing.T, w *world) {
		ss := openLate(t, w, bg)
		require.NoError(t, ss.CloseSend())
		require.Equal(t, []string{"StreamingOutputCall <nil>"}, k.list)
		require.Error(t, ss.RecvMsg(new(testpb.StreamingOutputCallResponse)))
	}, k.option())
}

func TestAServerStreamThatHasAffinityIsNotLate(t *testing.T) {
	var k keyCalls
	inWorld(t, func(t *testing.T, w *world) {
		var r affinity.Route
		ctx, cancel := context.WithCancel(affinity.Observe(affinity.With(bg, "b"), &r))
		defer cancel()
		openLate(t, w, ctx)
		require.Equal(t, "b", r.ID(), "it was opened")
		require.Empty(t, k.list)
	}, k.option())
}

func TestALateStreamIsUsedFromManySides(t *testing.T) {
	var k keyCalls
	inWorld(t, func(t *testing.T, w *world) {
		for range 20 {
			ctx, cancel := context.WithCancel(bg)
			ss := openLate(t, w, ctx)
			var wg sync.WaitGroup
			wg.Go(func() {
				_ = ss.SendMsg(&testpb.StreamingOutputCallRequest{Payload: payload("room-1")})
				_ = ss.CloseSend()
			})
			wg.Go(func() {
				for ss.RecvMsg(new(testpb.StreamingOutputCallResponse)) == nil {
				}
				_ = ss.Trailer()
			})
			wg.Go(func() { _, _ = ss.Header() })
			wg.Go(func() { _ = ss.Context() })
			wg.Wait()
			cancel()
		}
		require.Len(t, k.list, 20)
	}, k.option())
}

func TestALateStreamFollowsItsKeyHome(t *testing.T) {
	var k keyCalls
	inWorld(t, func(t *testing.T, w *world) {
		for _, name := range []string{"a", "b", "c"} {
			body := w.keyAt(name)
			ss, err := w.client.StreamingOutputCall(bg, &testpb.StreamingOutputCallRequest{Payload: payload(body)})
			require.NoError(t, err)
			m, err := ss.Recv()
			require.NoError(t, err)
			require.Equal(t, name, string(m.GetPayload().GetBody()))
			_, err = ss.Recv()
			require.Equal(t, io.EOF, err)
		}
	}, k.option())
}
