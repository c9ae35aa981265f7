package affinity_test

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // a compressor for handlers to choose
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
)

const self = "game-1"

var errBusy = status.Error(codes.Unavailable, "busy")

func TestUnaryAnswersAreSigned(t *testing.T) {
	mine := metadata.Pairs("mine", "1")
	for _, tc := range []struct {
		name    string
		handler func(context.Context) error
		header  metadata.MD
		trailer metadata.MD
		code    codes.Code
	}{
		{
			name:    "on the header on success",
			handler: func(context.Context) error { return nil },
			header:  metadata.Pairs(affinity.IDHeader, self),
		},
		{
			name:    "on the trailer, and only there, on failure",
			handler: func(context.Context) error { return errBusy },
			trailer: metadata.Pairs(affinity.IDHeader, self),
			code:    codes.Unavailable,
		},
		{
			name:    "beside what the handler set",
			handler: func(ctx context.Context) error { return grpc.SetHeader(ctx, mine) },
			header:  metadata.Pairs(affinity.IDHeader, self, "mine", "1"),
		},
		{
			name: "on the trailer when the handler set a header and failed",
			handler: func(ctx context.Context) error {
				_ = grpc.SetHeader(ctx, mine)
				return errBusy
			},
			header:  mine,
			trailer: metadata.Pairs(affinity.IDHeader, self),
			code:    codes.Unavailable,
		},
		{
			name:    "on the trailer when the handler sent the header",
			handler: func(ctx context.Context) error { return grpc.SendHeader(ctx, mine) },
			header:  mine,
			trailer: metadata.Pairs(affinity.IDHeader, self),
		},
		{
			name: "on the trailer when the handler sent the header and failed",
			handler: func(ctx context.Context) error {
				_ = grpc.SendHeader(ctx, mine)
				return errBusy
			},
			header:  mine,
			trailer: metadata.Pairs(affinity.IDHeader, self),
			code:    codes.Unavailable,
		},
		{
			name:    "beside the handler's trailer",
			handler: func(ctx context.Context) error { _ = grpc.SetTrailer(ctx, mine); return errBusy },
			trailer: metadata.Pairs(affinity.IDHeader, self, "mine", "1"),
			code:    codes.Unavailable,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := start(t, &service{unary: tc.handler}, affinity.ServerOptions(affinity.WithServerID(self)))
			checkSigned(t, unaryShape.call(t.Context(), c), tc.header, tc.trailer, tc.code)
		})
	}
}

func TestStreamsAreSigned(t *testing.T) {
	mine := metadata.Pairs("mine", "1")
	signed := metadata.Pairs(affinity.IDHeader, self)
	both := metadata.Join(signed, mine)
	for _, tc := range []struct {
		name    string
		handler func(ss grpc.ServerStream, reply any) error
		header  metadata.MD
		trailer metadata.MD
		code    codes.Code
		clients bool // fit for client streams, which get exactly one reply
	}{
		{
			name:    "on the header with the first message",
			handler: func(ss grpc.ServerStream, reply any) error { return ss.SendMsg(reply) },
			header:  signed,
			clients: true,
		},
		{
			name: "once for many messages",
			handler: func(ss grpc.ServerStream, reply any) error {
				for range 3 {
					if err := ss.SendMsg(reply); err != nil {
						return err
					}
				}
				return nil
			},
			header: signed,
		},
		{
			name:    "on the header of a success without a message",
			handler: func(grpc.ServerStream, any) error { return nil },
			header:  signed,
		},
		{
			name:    "on the trailer, and only there, of an early failure",
			handler: func(grpc.ServerStream, any) error { return errBusy },
			trailer: signed,
			code:    codes.Unavailable,
			clients: true,
		},
		{
			name: "on the header alone of a failure after messages",
			handler: func(ss grpc.ServerStream, reply any) error {
				if err := ss.SendMsg(reply); err != nil {
					return err
				}
				return errBusy
			},
			header:  signed,
			code:    codes.Unavailable,
			clients: true,
		},
		{
			name: "beside what the handler set",
			handler: func(ss grpc.ServerStream, reply any) error {
				if err := ss.SetHeader(mine); err != nil {
					return err
				}
				return ss.SendMsg(reply)
			},
			header:  both,
			clients: true,
		},
		{
			name: "beside what the handler set by way of the context",
			handler: func(ss grpc.ServerStream, reply any) error {
				if err := grpc.SetHeader(ss.Context(), mine); err != nil {
					return err
				}
				return ss.SendMsg(reply)
			},
			header:  both,
			clients: true,
		},
		{
			name: "beside what the handler sent",
			handler: func(ss grpc.ServerStream, reply any) error {
				if err := ss.SendHeader(mine); err != nil {
					return err
				}
				return ss.SendMsg(reply)
			},
			header:  both,
			clients: true,
		},
		{
			name: "with a header sent early, before a failure",
			handler: func(ss grpc.ServerStream, _ any) error {
				if err := ss.SendHeader(nil); err != nil {
					return err
				}
				return errBusy
			},
			header:  signed,
			code:    codes.Unavailable,
			clients: true,
		},
		{
			name: "on the trailer when the header that the handler sent was refused",
			handler: func(ss grpc.ServerStream, _ any) error {
				if ss.SendHeader(metadata.Pairs("bad", "\n")) == nil {
					return status.Error(codes.Unknown, "a bad header was sent")
				}
				return errBusy
			},
			trailer: signed,
			code:    codes.Unavailable,
			clients: true,
		},
		{
			name: "on the trailer when the handler sent the header by way of the context",
			handler: func(ss grpc.ServerStream, reply any) error {
				if err := grpc.SendHeader(ss.Context(), mine); err != nil {
					return err
				}
				return ss.SendMsg(reply)
			},
			header:  mine,
			trailer: signed,
			clients: true,
		},
		{
			name: "as a second header is an error that the handler gets to see",
			handler: func(ss grpc.ServerStream, reply any) error {
				if err := ss.SendHeader(nil); err != nil {
					return err
				}
				if ss.SendHeader(nil) == nil {
					return status.Error(codes.Unknown, "a second header was sent")
				}
				return ss.SendMsg(reply)
			},
			header:  signed,
			clients: true,
		},
		{
			name: "once by goroutines that send in turn",
			handler: func(ss grpc.ServerStream, reply any) error {
				var mu sync.Mutex
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						mu.Lock()
						defer mu.Unlock()
						_ = ss.SendMsg(reply)
					})
				}
				wg.Wait()
				return nil
			},
			header: signed,
		},
		{
			name: "once when one goroutine sends and the handler returns",
			handler: func(ss grpc.ServerStream, reply any) error {
				sent := make(chan error)
				go func() { sent <- ss.SendMsg(reply) }()
				return <-sent
			},
			header:  signed,
			clients: true,
		},
	} {
		for _, sh := range streamShapes {
			if sh.name == "client stream" && !tc.clients {
				continue
			}
			t.Run(tc.name+"/"+sh.name, func(t *testing.T) {
				c := start(t, &service{stream: tc.handler}, affinity.ServerOptions(affinity.WithServerID(self)))
				checkSigned(t, sh.call(affinity.WithKey(t.Context(), "k"), c), tc.header, tc.trailer, tc.code)
			})
		}
	}
}

// A handler may fail while a goroutine of its own has not heard of it yet: which
// of the two signs is open, that one does is not. For the race detector.
func TestAStreamIsSignedWhenItsHandlerFailsDuringASend(t *testing.T) {
	var senders sync.WaitGroup
	runs := 0
	c := start(t, &service{stream: func(ss grpc.ServerStream, reply any) error {
		senders.Go(func() { _ = ss.SendMsg(reply) })
		for range runs { // let the send get a little further each time
			runtime.Gosched()
		}
		runs++
		return errBusy
	}}, affinity.ServerOptions(affinity.WithServerID(self)))
	for range 100 {
		a := bidiShape.call(t.Context(), c)
		require.Equal(t, codes.Unavailable, status.Code(a.err))
		require.Contains(t, append(a.header[affinity.IDHeader], a.trailer[affinity.IDHeader]...), self)
	}
	senders.Wait()
}

func checkSigned(t *testing.T, a answer, header, trailer metadata.MD, code codes.Code) {
	t.Helper()
	require.Equal(t, code, status.Code(a.err), "%v", a.err)
	for _, md := range []metadata.MD{a.header, a.trailer} {
		delete(md, "content-type") // gRPC's own, wherever the response began
	}
	require.Equal(t, header.Len(), a.header.Len(), "header: %#v", a.header)
	require.Equal(t, trailer.Len(), a.trailer.Len(), "trailer: %#v", a.trailer)
	for k, v := range header {
		require.Equal(t, v, a.header[k], "header %s", k)
	}
	for k, v := range trailer {
		require.Equal(t, v, a.trailer[k], "trailer %s", k)
	}
}

// The interceptors must not stand between a handler and the functions of gRPC
// that want gRPC's own stream in the context.
func TestHandlersCanChooseACompressor(t *testing.T) {
	choose := func(ctx context.Context) error {
		if err := grpc.SetSendCompressor(ctx, "gzip"); err != nil {
			return err
		}
		_, err := grpc.ClientSupportedCompressors(ctx)
		return err
	}
	c := start(t, &service{unary: choose, stream: func(ss grpc.ServerStream, reply any) error {
		if err := choose(ss.Context()); err != nil {
			return err
		}
		return ss.SendMsg(reply)
	}}, affinity.ServerOptions(affinity.WithServerID(self)), affinity.DialOptions()...)
	for _, sh := range shapes {
		require.NoError(t, sh.call(affinity.WithKey(t.Context(), "k"), c).err, sh.name)
	}
}

// gRPC retries a call only while nothing but a trailer came back: a handler
// that fails twice has to be run a third time, as it is without interceptors.
func TestRetriesGoOnWithInterceptorsInstalled(t *testing.T) {
	const retry = `{"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":4,"initialBackoff":"1s","maxBackoff":"1s","backoffMultiplier":1,"retryableStatusCodes":["UNAVAILABLE"]}}]}`
	for _, sh := range shapes {
		t.Run(sh.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				runs := 0
				fail := func() error {
					if runs++; runs < 3 {
						return errBusy
					}
					return nil
				}
				c := start(t, &service{
					unary: func(context.Context) error { return fail() },
					stream: func(ss grpc.ServerStream, reply any) error {
						if err := fail(); err != nil {
							return err
						}
						// An answer that overtakes the message gets lost in gRPC's replay.
						_ = ss.RecvMsg(new(testpb.StreamingOutputCallRequest))
						return ss.SendMsg(reply)
					},
				}, affinity.ServerOptions(affinity.WithServerID(self)),
					append(affinity.DialOptions(), grpc.WithDefaultServiceConfig(retry))...)

				a := sh.call(apply(t.Context(), id(self), key("k")), c)
				require.NoError(t, a.err)
				require.Equal(t, 3, runs)
				require.Equal(t, 1, a.replies)
				require.Equal(t, []string{self}, a.header[affinity.IDHeader])
			})
		})
	}
}

func TestServerSignsNothingUnlessAsked(t *testing.T) {
	c := start(t, &service{}, affinity.ServerOptions(), affinity.DialOptions()...)
	for _, sh := range shapes {
		a := sh.call(apply(t.Context(), id(self), key("k")), c)
		require.NoError(t, a.err, sh.name)
		require.Empty(t, a.header[affinity.IDHeader], sh.name)
		require.Empty(t, a.trailer[affinity.IDHeader], sh.name)
	}
}

func TestServerWithAnIDThatNoHeaderCarriesFailsEveryCall(t *testing.T) {
	for _, tc := range []struct{ name, id, want string }{
		{"empty", "", `affinity: WithServerID: server id "": it is empty`},
		{"long", strings.Repeat("x", 257), `affinity: WithServerID: server id "` + strings.Repeat("x", 64) + `"...: 257 bytes are more than 256`},
		{"not printable", "a\n", `affinity: WithServerID: server id "a\n": byte 1 is not printable ASCII`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ran := 0
			c := start(t, watch(func(context.Context) { ran++ }), affinity.ServerOptions(affinity.WithServerID(tc.id)))
			for _, sh := range shapes {
				err := sh.call(t.Context(), c).err
				require.Equal(t, codes.Internal, status.Code(err), sh.name)
				require.Equal(t, tc.want, status.Convert(err).Message(), sh.name)
			}
			require.Zero(t, ran)
		})
	}
}

func TestTheLastServerIDHolds(t *testing.T) {
	c := start(t, &service{}, affinity.ServerOptions(affinity.WithServerID(""), nil, affinity.WithServerID(self)))
	for _, sh := range shapes {
		a := sh.call(t.Context(), c)
		require.NoError(t, a.err, sh.name)
		require.Equal(t, []string{self}, a.header[affinity.IDHeader], sh.name)
	}
}

// An interceptor that is called without gRPC, as tests of handlers do, has
// nothing to sign.
func TestSigningWithoutAStreamFailsNoCall(t *testing.T) {
	resp, err := affinity.UnaryServerInterceptor(affinity.WithServerID(self))(t.Context(), nil, nil,
		func(context.Context, any) (any, error) { return "ok", nil })
	require.NoError(t, err)
	require.Equal(t, "ok", resp)
}
