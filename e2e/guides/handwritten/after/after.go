// Package after is the client and the server of guide handwritten on homing. The
// resolver, the lease and the watch are gone.
package after

import (
	"context"
	"net"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// Dial returns a channel to all servers of the game.
func Dial(cli *clientv3.Client) (*grpc.ClientConn, error) {
	builder, err := registry.NewBuilder(cli)
	if err != nil {
		return nil, err
	}
	opts := []grpc.DialOption{
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	}
	opts = append(opts, affinity.DialOptions()...)
	return grpc.NewClient("etcd:////game/v1", opts...)
}

// Serve serves the game on lis, in etcd, until ctx ends.
func Serve(ctx context.Context, cli *clientv3.Client, name string, game testpb.TestServiceServer, lis net.Listener) error {
	calls := new(registry.Calls)
	srv := grpc.NewServer(append(
		affinity.ServerOptions(affinity.WithServerID(name)),
		grpc.StatsHandler(calls))...)
	testpb.RegisterTestServiceServer(srv, game)
	return registry.Serve(ctx, cli, "/game/v1", srv, lis,
		endpointsmeta.Meta{ID: name}, registry.WithCalls(calls))
}
