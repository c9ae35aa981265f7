package affinity_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// service is a server whose behaviour a test gives. The nil functions answer
// with one message.
type service struct {
	testpb.UnimplementedTestServiceServer
	unary  func(ctx context.Context) error
	stream func(ss grpc.ServerStream, reply any) error
}

func (s *service) UnaryCall(ctx context.Context, _ *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if s.unary != nil {
		if err := s.unary(ctx); err != nil {
			return nil, err
		}
	}
	return &testpb.SimpleResponse{}, nil
}

func (s *service) StreamingOutputCall(_ *testpb.StreamingOutputCallRequest, ss grpc.ServerStreamingServer[testpb.StreamingOutputCallResponse]) error {
	return s.serve(ss, &testpb.StreamingOutputCallResponse{})
}

func (s *service) StreamingInputCall(ss grpc.ClientStreamingServer[testpb.StreamingInputCallRequest, testpb.StreamingInputCallResponse]) error {
	return s.serve(ss, &testpb.StreamingInputCallResponse{})
}

func (s *service) FullDuplexCall(ss grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	return s.serve(ss, &testpb.StreamingOutputCallResponse{})
}

func (s *service) serve(ss grpc.ServerStream, reply any) error {
	if s.stream != nil {
		return s.stream(ss, reply)
	}
	return ss.SendMsg(reply)
}

// answer is what a client sees of a call.
type answer struct {
	header, trailer metadata.MD
	replies         int
	err             error
}

// shape is one of gRPC's four kinds of calls, run to its end.
type shape struct {
	name string
	call func(ctx context.Context, c testpb.TestServiceClient) answer
}

var unaryShape = shape{"unary", func(ctx context.Context, c testpb.TestServiceClient) (a answer) {
	if _, a.err = c.UnaryCall(ctx, &testpb.SimpleRequest{}, grpc.Header(&a.header), grpc.Trailer(&a.trailer)); a.err == nil {
		a.replies = 1
	}
	return a
}}

var bidiShape = shape{"bidirectional stream", func(ctx context.Context, c testpb.TestServiceClient) answer {
	ss, err := c.FullDuplexCall(ctx)
	if err != nil {
		return answer{err: err}
	}
	_ = ss.Send(&testpb.StreamingOutputCallRequest{}) // Recv tells why it failed
	_ = ss.CloseSend()
	return drain(ss, new(testpb.StreamingOutputCallResponse))
}}

var streamShapes = []shape{
	{"server stream", func(ctx context.Context, c testpb.TestServiceClient) answer {
		ss, err := c.StreamingOutputCall(ctx, &testpb.StreamingOutputCallRequest{})
		if err != nil {
			return answer{err: err}
		}
		return drain(ss, new(testpb.StreamingOutputCallResponse))
	}},
	{"client stream", func(ctx context.Context, c testpb.TestServiceClient) answer {
		ss, err := c.StreamingInputCall(ctx)
		if err != nil {
			return answer{err: err}
		}
		_ = ss.Send(&testpb.StreamingInputCallRequest{})
		_ = ss.CloseSend()
		return drain(ss, new(testpb.StreamingInputCallResponse))
	}},
	bidiShape,
}

var shapes = append([]shape{unaryShape}, streamShapes...)

func drain(ss grpc.ClientStream, reply any) (a answer) {
	for {
		if a.err = ss.RecvMsg(reply); a.err != nil {
			break
		}
		a.replies++
	}
	if errors.Is(a.err, io.EOF) {
		a.err = nil
	}
	a.header, _ = ss.Header()
	a.trailer = ss.Trailer()
	return a
}

// start runs srv and returns a client of it. Both end with the test.
func start(t testing.TB, srv testpb.TestServiceServer, so []grpc.ServerOption, do ...grpc.DialOption) testpb.TestServiceClient {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	s := grpc.NewServer(so...)
	testpb.RegisterTestServiceServer(s, srv)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(lis)
	}()
	cc, err := grpc.NewClient("passthrough:///bufconn", append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }),
	}, do...)...)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = cc.Close()
		s.Stop()
		<-done
	})
	return testpb.NewTestServiceClient(cc)
}

// probe is a pair of client interceptors that shows each call's context to f.
func probe(f func(context.Context)) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			f(ctx)
			return invoker(ctx, method, req, reply, cc, opts...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			f(ctx)
			return streamer(ctx, desc, cc, method, opts...)
		}),
	}
}

// watch returns a service that shows each handler's context to f.
func watch(f func(context.Context)) *service {
	return &service{
		unary: func(ctx context.Context) error {
			f(ctx)
			return nil
		},
		stream: func(ss grpc.ServerStream, reply any) error {
			f(ss.Context())
			return ss.SendMsg(reply)
		},
	}
}
