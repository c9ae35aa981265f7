// Package before is what guide reregister starts from: a server that looks every few
// seconds whether its key is there, puts it back, and deletes it when it is told to stop.
package before

import (
	"context"
	"net"
	"os/signal"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// ServeUntilSignal serves the game until the process is told to stop.
func ServeUntilSignal(cli *clientv3.Client, name string, game testpb.TestServiceServer, lis net.Listener) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return Serve(ctx, cli, name, game, lis)
}

// Serve serves the game on lis, in etcd, until ctx ends.
func Serve(ctx context.Context, cli *clientv3.Client, name string, game testpb.TestServiceServer, lis net.Listener) error {
	srv := grpc.NewServer()
	testpb.RegisterTestServiceServer(srv, game)
	addr := lis.Addr().String()
	go func() {
		Register(ctx, cli, "/naming/game/"+addr, addr)
		srv.GracefulStop()
	}()
	return srv.Serve(lis)
}

// Register keeps key in etcd until ctx ends.
func Register(ctx context.Context, cli *clientv3.Client, key, addr string) {
	const interval = 5 * time.Second
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		resp, err := cli.Get(ctx, key)
		if err == nil && len(resp.Kvs) == 0 {
			lease, err := cli.Grant(ctx, 3*int64(interval/time.Second))
			if err == nil {
				cli.Put(ctx, key, addr, clientv3.WithLease(lease.ID))
			}
		} else if err == nil {
			cli.KeepAliveOnce(ctx, clientv3.LeaseID(resp.Kvs[0].Lease))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			cli.Delete(context.Background(), key)
			return
		}
	}
}

// Addresses returns those of all servers of the game, to dial one of.
func Addresses(ctx context.Context, cli *clientv3.Client) ([]string, error) {
	resp, err := cli.Get(ctx, "/naming/game/", clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	var addrs []string
	for _, kv := range resp.Kvs {
		addrs = append(addrs, string(kv.Value))
	}
	return addrs, nil
}
