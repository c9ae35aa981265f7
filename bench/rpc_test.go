package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

// setups are channels to one server each. The first is what to compare with.
var setups = []struct {
	label  string
	ours   bool // the policy is, instead of round_robin
	ctx    context.Context
	client []grpc.DialOption
	server []grpc.ServerOption
}{
	{label: "plain", ctx: bg},
	{label: "policy", ours: true, ctx: bg},
	{label: "key-ctx", ours: true, ctx: affinity.WithKey(bg, "room-42")}, // no interceptors
	{label: "by-hand", ctx: keyHeader("room-42"), server: []grpc.ServerOption{ // as one would without us
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			readByHand(ctx)
			_ = grpc.SetHeader(ctx, metadata.Pairs(affinity.IDHeader, "game-1"))
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			readByHand(ss.Context())
			_ = ss.SetHeader(metadata.Pairs(affinity.IDHeader, "game-1"))
			return next(srv, ss)
		})}},
	{label: "interceptors", ours: true, ctx: bg, client: affinity.DialOptions(), server: affinity.ServerOptions()},
	{label: "read", ours: true, ctx: affinity.WithKey(bg, "room-42"), client: affinity.DialOptions(), server: affinity.ServerOptions()},
	{label: "answered", ours: true, ctx: affinity.WithKey(bg, "room-42"), client: affinity.DialOptions(),
		server: affinity.ServerOptions(affinity.WithServerID("game-1"))},
	{label: "session", ours: true, ctx: affinity.NewSession("room-42").Context(bg), client: affinity.DialOptions(),
		server: affinity.ServerOptions(affinity.WithServerID("game-1"))},
}

func readByHand(ctx context.Context) {
	if vs := metadata.ValueFromIncomingContext(ctx, affinity.KeyHeader); len(vs) != 1 {
		panic("no key")
	}
}

// kinds are whole RPCs. open prepares what call then does over and over.
var kinds = []struct {
	name string
	open func(ctx context.Context, c testpb.TestServiceClient) (call func() error, err error)
}{
	{"unary", func(ctx context.Context, c testpb.TestServiceClient) (func() error, error) {
		req := new(testpb.SimpleRequest)
		return func() error { _, err := c.UnaryCall(ctx, req); return err }, nil
	}},
	{"stream", func(ctx context.Context, c testpb.TestServiceClient) (func() error, error) { // a new one, with a message each way
		return func() error {
			s, err := c.FullDuplexCall(ctx)
			if err != nil {
				return err
			}
			if err := pingPong(s); err != nil {
				return err
			}
			if err := s.CloseSend(); err != nil {
				return err
			}
			if _, err := s.Recv(); err != io.EOF {
				return fmt.Errorf("the end: %w", err)
			}
			return nil
		}, nil
	}},
	{"message", func(ctx context.Context, c testpb.TestServiceClient) (func() error, error) { // one each way, of one stream
		s, err := c.FullDuplexCall(ctx)
		return func() error { return pingPong(s) }, err
	}},
}

func pingPong(s testpb.TestService_FullDuplexCallClient) error {
	if err := s.Send(new(testpb.StreamingOutputCallRequest)); err != nil {
		return err
	}
	_, err := s.Recv()
	return err
}

// BenchmarkRPC is whole RPCs, client and server in one process.
func BenchmarkRPC(b *testing.B) {
	for _, transport := range []string{"tcp", "bufconn"} {
		for _, kind := range kinds {
			for i, s := range setups {
				b.Run(fmt.Sprintf("transport=%s/kind=%s/setup=%s", transport, kind.name, s.label), func(b *testing.B) {
					call, err := kind.open(s.ctx, serve(b, transport, i))
					if err != nil {
						b.Fatal(err)
					}
					if err := call(); err != nil { // connects
						b.Fatal(err)
					}
					b.ReportAllocs()
					b.ResetTimer()
					for b.Loop() {
						if err := call(); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

// BenchmarkRPCInTurn is the median time of each setup's RPCs, made in turn, so that all
// have the same noise: what they differ by is less than what a machine varies by.
func BenchmarkRPCInTurn(b *testing.B) {
	for _, transport := range []string{"tcp", "bufconn"} {
		for _, kind := range kinds {
			b.Run(fmt.Sprintf("transport=%s/kind=%s", transport, kind.name), func(b *testing.B) {
				calls := make([]func() error, len(setups))
				for i, s := range setups {
					var err error
					if calls[i], err = kind.open(s.ctx, serve(b, transport, i)); err != nil {
						b.Fatal(err)
					}
					if err := calls[i](); err != nil {
						b.Fatal(err)
					}
				}
				took := make([][]time.Duration, len(setups))
				for b.Loop() {
					for i, call := range calls {
						start := time.Now()
						if err := call(); err != nil {
							b.Fatal(err)
						}
						took[i] = append(took[i], time.Since(start))
					}
				}
				b.ReportMetric(0, "ns/op")
				for i, s := range setups {
					b.ReportMetric(middle(took[i]), "p50-ns:"+s.label)
				}
			})
		}
	}
}

// serve starts a server and its channel as setup i has it.
func serve(b *testing.B, transport string, i int) testpb.TestServiceClient {
	s := setups[i]
	srv := grpc.NewServer(s.server...)
	testpb.RegisterTestServiceServer(srv, echo{})
	policy := "round_robin"
	if s.ours {
		policy = stickybalancer.Name
	}
	opts := slices.Concat(s.client, []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(fmt.Sprintf(`{"loadBalancingConfig": [{%q: {}}]}`, policy)),
	})
	target := "passthrough:///server"
	var lis net.Listener
	if transport == "tcp" {
		var err error
		if lis, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			b.Fatal(err)
		}
		target = "passthrough:///" + lis.Addr().String()
	} else {
		buf := bufconn.Listen(1 << 16)
		lis = buf
		opts = append(opts, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return buf.DialContext(ctx) }))
	}
	go srv.Serve(lis)
	conn, err := grpc.NewClient(target, opts...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close(); srv.Stop() })
	return testpb.NewTestServiceClient(conn)
}

// echo answers at once.
type echo struct {
	testpb.UnimplementedTestServiceServer
}

func (echo) UnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	return new(testpb.SimpleResponse), nil
}

func (echo) FullDuplexCall(s testpb.TestService_FullDuplexCallServer) error {
	for {
		if _, err := s.Recv(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := s.Send(new(testpb.StreamingOutputCallResponse)); err != nil {
			return err
		}
	}
}
