// Package after is the client and the server of guide reregister on homing.
package after

import (
	"context"
	"net"
	"os/signal"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// ServeUntilSignal serves the game until the process is told to stop.
func ServeUntilSignal(cli *clientv3.Client, name string, game testpb.TestServiceServer, lis net.Listener) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return Serve(ctx, cli, name, game, lis)
}

// Serve serves the game on lis, in etcd, until ctx ends.
func Serve(ctx context.Context, cli *clientv3.Client, name string, game testpb.TestServiceServer, lis net.Listener) error {
	calls := new(registry.Calls)
	srv := grpc.NewServer(append(
		affinity.ServerOptions(affinity.WithServerID(name)),
		grpc.StatsHandler(calls))...)
	testpb.RegisterTestServiceServer(srv, game)
	return registry.Serve(ctx, cli, "/naming/game", srv, lis, endpointsmeta.Meta{ID: name},
		registry.WithCalls(calls), registry.WithTTL(15*time.Second))
}

// Dial returns a channel to all servers of the game.
func Dial(cli *clientv3.Client) (*grpc.ClientConn, error) {
	builder, err := registry.NewBuilder(cli, registry.WithPlainAddresses())
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("etcd:////naming/game", append(affinity.DialOptions(),
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
}
