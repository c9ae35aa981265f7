package affinity_test

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"

	"github.com/homing-grpc/homing/affinity"
)

// BenchmarkRPC is a whole unary call over bufconn. Stamping and reading may cost
// 13 allocations more than the bare call; signing comes on top. Two of them are
// the price of any server interceptor.
func BenchmarkRPC(b *testing.B) {
	keyed := affinity.WithKey(context.Background(), "room-42")
	for _, bc := range []struct {
		name   string
		ctx    context.Context
		server []grpc.ServerOption
		client []grpc.DialOption
	}{
		{"interceptors=none", context.Background(), nil, nil},
		{"interceptors=both/affinity=none", context.Background(), affinity.ServerOptions(), affinity.DialOptions()},
		{"interceptors=both/affinity=key", keyed, affinity.ServerOptions(), affinity.DialOptions()},
		{"interceptors=both/affinity=id", affinity.With(context.Background(), "game-1"), affinity.ServerOptions(), affinity.DialOptions()},
		{"interceptors=both/affinity=id+key", affinity.With(keyed, "game-1"), affinity.ServerOptions(), affinity.DialOptions()},
		{"interceptors=both/affinity=key/signed", keyed, affinity.ServerOptions(affinity.WithServerID("game-1")), affinity.DialOptions()},
		{"interceptors=both/affinity=id+key/signed", affinity.With(keyed, "game-1"), affinity.ServerOptions(affinity.WithServerID("game-1")), affinity.DialOptions()},
		{"interceptors=both/affinity=id/sealed/signed", affinity.With(metadata.AppendToOutgoingContext(context.Background(), "user", "alice"), sealedID(b, "game-1", "alice")),
			affinity.ServerOptions(sealing(b), affinity.WithServerID("game-1")), affinity.DialOptions()},
	} {
		b.Run(bc.name, func(b *testing.B) {
			c := start(b, &service{}, bc.server, bc.client...)
			req := &testpb.SimpleRequest{}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.UnaryCall(bc.ctx, req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkClientInterceptor stamps beside five headers of others, as
// authentication and tracing leave them.
func BenchmarkClientInterceptor(b *testing.B) {
	call := affinity.UnaryClientInterceptor()
	invoker := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil }
	plain := context.Background()
	five := metadata.AppendToOutgoingContext(plain, "h1", "v", "h2", "v", "h3", "v", "h4", "v", "h5", "v")
	for _, bc := range []struct {
		name string
		ctx  context.Context
	}{
		{"headers=0/affinity=none", plain},
		{"headers=5/affinity=none", five},
		{"headers=0/affinity=key", affinity.WithKey(plain, "room-42")},
		{"headers=5/affinity=key", affinity.WithKey(five, "room-42")},
		{"headers=5/affinity=id+key", affinity.With(affinity.WithKey(five, "room-42"), "game-1")},
		{"headers=6/affinity=key/conflict", affinity.WithKey(metadata.AppendToOutgoingContext(five, affinity.KeyHeader, "old"), "room-42")},
	} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = call(bc.ctx, "/s/m", nil, nil, nil, invoker)
			}
		})
	}
}

// BenchmarkServerInterceptor reads among the headers that every gRPC call has.
func BenchmarkServerInterceptor(b *testing.B) {
	handler := func(context.Context, any) (any, error) { return nil, nil }
	base := metadata.Pairs(":authority", "a", "content-type", "application/grpc", "user-agent", "g", "grpc-accept-encoding", "gzip", "user", "alice")
	key := metadata.Join(base, metadata.Pairs(affinity.KeyHeader, "room-42"))
	id := metadata.Join(base, metadata.Pairs(affinity.IDHeader, sealedID(b, "game-1", "alice")))
	strip := affinity.WithTrust(nil, affinity.Strip())
	for _, bc := range []struct {
		name string
		md   metadata.MD
		opts []affinity.ServerOption
	}{
		{"affinity=none", base, nil},
		{"affinity=key", key, nil},
		{"affinity=id+key", metadata.Join(key, metadata.Pairs(affinity.IDHeader, "game-1")), nil},
		{"affinity=none/strip", base, []affinity.ServerOption{strip}},
		{"affinity=key/strip", key, []affinity.ServerOption{strip}},
		{"affinity=none/sealed", base, []affinity.ServerOption{sealing(b)}},
		{"affinity=id/sealed", id, []affinity.ServerOption{sealing(b)}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			call := affinity.UnaryServerInterceptor(bc.opts...)
			ctx := metadata.NewIncomingContext(context.Background(), bc.md)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := call(ctx, nil, nil, handler); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
