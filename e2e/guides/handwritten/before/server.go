// Package before is what guide handwritten starts from: a registration with its own JSON,
// lease and keepalive, and a resolver with its own watch.
package before

import (
	"context"
	"encoding/json"
	"net"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// Server is a record in etcd, under /name/version/addr.
type Server struct {
	Name    string `json:"name"`
	Addr    string `json:"addr"`
	Version string `json:"version"`
	Weight  int64  `json:"weight"`
}

// Serve serves the game on lis, in etcd, until ctx ends.
func Serve(ctx context.Context, cli *clientv3.Client, name string, game testpb.TestServiceServer, lis net.Listener) error {
	srv := grpc.NewServer()
	testpb.RegisterTestServiceServer(srv, game)
	addr := lis.Addr().String()
	value, err := json.Marshal(Server{Name: "game", Addr: addr, Version: "v1", Weight: 1})
	if err != nil {
		return err
	}
	lease, err := cli.Grant(ctx, 10)
	if err != nil {
		return err
	}
	key := "/game/v1/" + addr
	if _, err := cli.Put(ctx, key, string(value), clientv3.WithLease(lease.ID)); err != nil {
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
		cli.Delete(context.Background(), key)
		srv.GracefulStop()
	}()
	return srv.Serve(lis)
}
