package homing_test

import (
	"context"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

type game struct {
	testpb.UnimplementedTestServiceServer
}

func (game) EmptyCall(context.Context, *testpb.Empty) (*testpb.Empty, error) {
	return &testpb.Empty{}, nil
}

func server() error {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"localhost:2379"}})
	if err != nil {
		return err
	}
	lis, err := net.Listen("tcp", "127.0.0.1:7001") // an address that clients reach
	if err != nil {
		return err
	}
	// A signal ends ctx: Serve then drains, leaves the registry, and returns nil.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	calls := new(registry.Calls)
	srv := grpc.NewServer(append(
		affinity.ServerOptions(affinity.WithServerID("game-1")),
		grpc.StatsHandler(calls))...)
	testpb.RegisterTestServiceServer(srv, game{})
	return registry.Serve(ctx, cli, "game", srv, lis,
		endpointsmeta.Meta{ID: "game-1"}, registry.WithCalls(calls))
}

func client(ctx context.Context, cli *clientv3.Client) error {
	builder, err := registry.NewBuilder(cli)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("etcd:///game", append(affinity.DialOptions(),
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		return err
	}
	defer conn.Close()
	rpc := testpb.NewTestServiceClient(conn)

	// Anywhere, round robin, and see where that was:
	var route affinity.Route
	_, err = rpc.EmptyCall(affinity.Observe(ctx, &route), &testpb.Empty{})
	if err != nil {
		return err
	}
	lastServer := route.ID()

	// Back to the server that holds the state:
	_, err = rpc.EmptyCall(affinity.With(ctx, lastServer), &testpb.Empty{})
	if err != nil {
		return err
	}

	session := affinity.NewSession("player-7")
	session.OnMove(func(m affinity.Move) {
		log.Printf("the state was left on %s (%s): load it on %s", m.From, m.Reason, m.To)
	})
	_, err = rpc.EmptyCall(session.Context(ctx), &testpb.Empty{})
	return err
}

func keyed() []grpc.DialOption {
	return append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		// The key of a request, set once for all calls:
		affinity.DialOptions(affinity.WithKeyFunc(func(_ context.Context, _ string, req any) string {
			if r, ok := req.(*testpb.SimpleRequest); ok {
				return string(r.GetPayload().GetBody())
			}
			return ""
		}))...)
}

// Example is the README's: it needs an etcd at localhost:2379, so it is compiled
// and not run. The stateful-game example runs the same.
func Example() {
	_, _, _ = server, client, keyed
}
