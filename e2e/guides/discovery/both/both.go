// Package both is a server in both places at once: under the prefix where old clients look,
// as before, and as a service of its own for new ones. All guides can be followed so.
package both

import (
	"context"
	"net"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/e2e/guides/discovery/before"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// Serve serves the game on lis, in both places, until ctx ends.
func Serve(ctx context.Context, cli *clientv3.Client, name string, game testpb.TestServiceServer, lis net.Listener) error {
	calls := new(registry.Calls)
	srv := grpc.NewServer(append(
		affinity.ServerOptions(affinity.WithServerID(name)),
		grpc.StatsHandler(calls))...)
	testpb.RegisterTestServiceServer(srv, game)

	old, err := before.NewServiceRegister(ctx, cli, "/game/"+name, lis.Addr().String(), 10)
	if err != nil {
		return err
	}
	defer old.Close()
	context.AfterFunc(ctx, func() { old.Close() }) // first: it cannot say that the server drains

	return registry.Serve(ctx, cli, "v2/game", srv, lis,
		endpointsmeta.Meta{ID: name}, registry.WithCalls(calls))
}

// Dial returns a channel to all servers that are in the new place.
func Dial(cli *clientv3.Client) (*grpc.ClientConn, error) {
	builder, err := registry.NewBuilder(cli)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("etcd:///v2/game", append(affinity.DialOptions(),
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
}
