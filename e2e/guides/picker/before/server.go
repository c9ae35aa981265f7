// Package before is what guide picker starts from: servers that register with their id as
// metadata, a resolver that carries the ids to a balancer, and a picker of its own that
// finds the server whose id is in the call's context.
package before

import (
	"context"
	"net"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// Serve serves the game on lis, in etcd, until ctx ends.
func Serve(ctx context.Context, cli *clientv3.Client, name string, game testpb.TestServiceServer, lis net.Listener) error {
	srv := grpc.NewServer()
	testpb.RegisterTestServiceServer(srv, game)
	manager, err := endpoints.NewManager(cli, "game")
	if err != nil {
		return err
	}
	lease, err := cli.Grant(ctx, 10)
	if err != nil {
		return err
	}
	err = manager.AddEndpoint(ctx, "game/"+name,
		endpoints.Endpoint{Addr: lis.Addr().String(), Metadata: name}, clientv3.WithLease(lease.ID))
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
		cli.Revoke(context.Background(), lease.ID)
		srv.GracefulStop()
	}()
	return srv.Serve(lis)
}
