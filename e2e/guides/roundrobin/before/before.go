// Package before is a client and a server on etcd's official naming packages and gRPC's
// round_robin: what guide roundrobin starts from.
package before

import (
	"context"
	"net"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// Dial returns a channel to all servers of the game.
func Dial(cli *clientv3.Client) (*grpc.ClientConn, error) {
	builder, err := resolver.NewBuilder(cli)
	if err != nil {
		return nil, err
	}
	opts := []grpc.DialOption{
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	}
	return grpc.NewClient("etcd:///game", opts...)
}

// Serve serves the game on lis, in etcd, until ctx ends.
func Serve(ctx context.Context, cli *clientv3.Client, name string, game testpb.TestServiceServer, lis net.Listener) error {
	srv := grpc.NewServer()
	testpb.RegisterTestServiceServer(srv, game)

	lease, err := cli.Grant(ctx, 10)
	if err != nil {
		return err
	}
	manager, err := endpoints.NewManager(cli, "game")
	if err != nil {
		return err
	}
	key := "game/" + name
	err = manager.AddEndpoint(ctx, key,
		endpoints.Endpoint{Addr: lis.Addr().String()}, clientv3.WithLease(lease.ID))
	if err != nil {
		return err
	}
	alive, err := cli.KeepAlive(ctx, lease.ID)
	if err != nil {
		return err
	}
	go func() {
		for range alive {
		}
	}()
	go func() {
		<-ctx.Done()
		manager.DeleteEndpoint(context.Background(), key)
		srv.GracefulStop()
	}()
	return srv.Serve(lis)
}
