package affinity_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/homing-grpc/homing/affinity"
)

// All calls with this context go to the server that is home to the room.
func ExampleWithKey() {
	ctx := affinity.WithKey(context.Background(), "room-42")

	a, ok := affinity.FromContext(ctx)
	fmt.Printf("%+v %t\n", a, ok)
	// Output: {ID: Key:room-42 Required:false} true
}

// Calls with this context prefer game-1. When it stays away they go to the
// server that is home to the room, so that all its players meet there.
func ExampleWith() {
	ctx := affinity.WithKey(context.Background(), "room-42")
	ctx = affinity.With(ctx, "game-1")

	a, ok := affinity.FromContext(ctx)
	fmt.Printf("%+v %t\n", a, ok)
	// Output: {ID:game-1 Key:room-42 Required:false} true
}

// Calls with this context reach game-1 or fail: no other server can answer.
func ExampleRequire() {
	ctx := affinity.Require(context.Background(), "game-1")

	a, ok := affinity.FromContext(ctx)
	fmt.Printf("%+v %t\n", a, ok)
	// Output: {ID:game-1 Key: Required:true} true
}

// rooms is a service whose handlers know which room a call is about.
type rooms struct {
	testpb.UnimplementedTestServiceServer
}

func (rooms) UnaryCall(ctx context.Context, _ *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	// Calls that this handler makes with ctx carry the key on.
	a, _ := affinity.FromContext(ctx)
	return &testpb.SimpleResponse{Username: a.Key}, nil
}

// A server and a client with the interceptors installed: the key reaches the
// handler, and the client learns who answered.
func ExampleDialOptions() {
	lis := bufconn.Listen(1 << 16) // a network inside this process
	srv := grpc.NewServer(affinity.ServerOptions(affinity.WithServerID("game-1"))...)
	testpb.RegisterTestServiceServer(srv, rooms{})
	go srv.Serve(lis)
	defer srv.Stop()

	opts := append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }),
	}, affinity.DialOptions()...) // last: innermost
	conn, err := grpc.NewClient("passthrough:///rooms", opts...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	ctx := affinity.WithKey(context.Background(), "room-42")
	var header metadata.MD
	resp, err := testpb.NewTestServiceClient(conn).UnaryCall(ctx, &testpb.SimpleRequest{}, grpc.Header(&header))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("room:", resp.GetUsername())
	fmt.Println("server:", header[affinity.IDHeader][0])
	// Output:
	// room: room-42
	// server: game-1
}

// In a handler: whose call it is, and where calls made with ctx will go.
func ExampleFromContext() {
	handler := func(ctx context.Context) {
		if a, ok := affinity.FromContext(ctx); ok {
			fmt.Println("a call about", a.Key)
		}
	}
	handler(affinity.WithKey(context.Background(), "room-42")) // as the server interceptor does
	// Output: a call about room-42
}

// A server with interceptors of others: those of affinity come first, so that the key is
// in the context of all.
func ExampleServerOptions() {
	logging := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		a, _ := affinity.FromContext(ctx)
		fmt.Println("a call about", a.Key)
		return handler(ctx, req)
	}
	srv := grpc.NewServer(append(
		affinity.ServerOptions(affinity.WithServerID("game-1")),
		grpc.ChainUnaryInterceptor(logging))...)
	testpb.RegisterTestServiceServer(srv, rooms{})
	lis := bufconn.Listen(1 << 16)
	go srv.Serve(lis)
	defer srv.Stop()

	conn, err := grpc.NewClient("passthrough:///rooms", append(affinity.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	ctx := affinity.WithKey(context.Background(), "room-42")
	if _, err := testpb.NewTestServiceClient(conn).UnaryCall(ctx, &testpb.SimpleRequest{}); err != nil {
		log.Fatal(err)
	}
	// Output: a call about room-42
}

// The same where the order of a server's chain is set by hand: ours come first, after those
// that authenticate callers if WithTrust asks for them.
func ExampleUnaryServerInterceptor() {
	authenticate := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return handler(ctx, req)
	}
	signed := affinity.WithServerID("game-1")
	srv := grpc.NewServer(
		grpc.ChainUnaryInterceptor(authenticate, affinity.UnaryServerInterceptor(signed)),
		grpc.ChainStreamInterceptor(affinity.StreamServerInterceptor(signed)))
	srv.Stop()
}

// A client whose streams may stay behind when their session moves: a log that is being
// read to its end, say.
func ExampleWithMovedStreams() {
	conn, err := grpc.NewClient("passthrough:///game", append(
		affinity.DialOptions(affinity.WithMovedStreams(false)),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		log.Fatal(err)
	}
	conn.Close()
}

// The interceptors by themselves, where the order of a chain is set by hand: on the client
// ours come last.
func ExampleUnaryClientInterceptor() {
	timeout := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return invoker(ctx, method, req, reply, cc, opts...)
	}
	conn, err := grpc.NewClient("passthrough:///game",
		grpc.WithChainUnaryInterceptor(timeout, affinity.UnaryClientInterceptor()),
		grpc.WithChainStreamInterceptor(affinity.StreamClientInterceptor()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(conn.Target())
	conn.Close()
	// Output: passthrough:///game
}
