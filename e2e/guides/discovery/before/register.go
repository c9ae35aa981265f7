// Package before is what guide discovery starts from: ServiceRegister, which keeps
// key and address in etcd, and ServiceDiscovery, whose GetServices returns the addresses.
package before

import (
	"context"
	"net"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// ServiceRegister is a server's place in etcd.
type ServiceRegister struct {
	cli   *clientv3.Client
	lease clientv3.LeaseID
}

// NewServiceRegister puts key and value into etcd, for as long as they are kept alive.
func NewServiceRegister(ctx context.Context, cli *clientv3.Client, key, value string, ttl int64) (*ServiceRegister, error) {
	lease, err := cli.Grant(ctx, ttl)
	if err != nil {
		return nil, err
	}
	if _, err := cli.Put(ctx, key, value, clientv3.WithLease(lease.ID)); err != nil {
		return nil, err
	}
	alive, err := cli.KeepAlive(ctx, lease.ID)
	if err != nil {
		return nil, err
	}
	go func() {
		for range alive {
		}
	}()
	return &ServiceRegister{cli, lease.ID}, nil
}

// Close takes the server out of etcd.
func (r *ServiceRegister) Close() error {
	_, err := r.cli.Revoke(context.Background(), r.lease)
	return err
}

// Serve serves the game on lis, in etcd, until ctx ends.
func Serve(ctx context.Context, cli *clientv3.Client, name string, game testpb.TestServiceServer, lis net.Listener) error {
	srv := grpc.NewServer()
	testpb.RegisterTestServiceServer(srv, game)
	reg, err := NewServiceRegister(ctx, cli, "/game/"+name, lis.Addr().String(), 10)
	if err != nil {
		return err
	}
	go func() {
		<-ctx.Done()
		reg.Close()
		srv.GracefulStop()
	}()
	return srv.Serve(lis)
}
