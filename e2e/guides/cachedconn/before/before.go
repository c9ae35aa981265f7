// Package before is what guide cachedconn starts from: GetConn returns one channel for
// each schema and service, made with a resolver of its own for each, from etcd addresses
// that are separated by commas.
package before

import (
	"context"
	"net"
	"strings"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
)

func prefix(schema, service string) string { return schema + ":///" + service + "/" }

var (
	mu    sync.Mutex
	conns = make(map[string]*grpc.ClientConn)
)

// GetConn returns the channel to a service. etcd is a list of addresses, with commas.
func GetConn(schema, etcd, service string) (*grpc.ClientConn, error) {
	mu.Lock()
	defer mu.Unlock()
	if conn, ok := conns[schema+service]; ok {
		return conn, nil
	}
	cli, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(etcd, ",")})
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(schema+":///"+service,
		grpc.WithResolvers(builder{cli, schema}),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	conns[schema+service] = conn
	return conn, nil
}

// Close closes the channel to a service, and forgets it.
func Close(schema, service string) {
	mu.Lock()
	defer mu.Unlock()
	if conn, ok := conns[schema+service]; ok {
		conn.Close()
		delete(conns, schema+service)
	}
}

type builder struct {
	cli    *clientv3.Client
	schema string
}

func (b builder) Scheme() string { return b.schema }

func (b builder) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	ctx, cancel := context.WithCancel(context.Background())
	from := prefix(b.schema, target.Endpoint())
	resp, err := b.cli.Get(ctx, from, clientv3.WithPrefix())
	if err != nil {
		cancel()
		return nil, err
	}
	servers := make(map[string]resolver.Address)
	for _, kv := range resp.Kvs {
		servers[string(kv.Key)] = resolver.Address{Addr: string(kv.Value)}
	}
	tell(cc, servers)
	go func() {
		for some := range b.cli.Watch(ctx, from, clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1)) {
			for _, e := range some.Events {
				if e.Type == clientv3.EventTypeDelete {
					delete(servers, string(e.Kv.Key))
				} else {
					servers[string(e.Kv.Key)] = resolver.Address{Addr: string(e.Kv.Value)}
				}
			}
			tell(cc, servers)
		}
	}()
	return closer(cancel), nil
}

func tell(cc resolver.ClientConn, servers map[string]resolver.Address) {
	var state resolver.State
	for _, a := range servers {
		state.Addresses = append(state.Addresses, a)
	}
	_ = cc.UpdateState(state)
}

type closer context.CancelFunc

func (closer) ResolveNow(resolver.ResolveNowOptions) {}

func (c closer) Close() { c() }

// Serve serves the game on lis, in etcd, until ctx ends.
func Serve(ctx context.Context, cli *clientv3.Client, name string, game testpb.TestServiceServer, lis net.Listener) error {
	srv := grpc.NewServer()
	testpb.RegisterTestServiceServer(srv, game)
	lease, err := cli.Grant(ctx, 10)
	if err != nil {
		return err
	}
	addr := lis.Addr().String()
	if _, err := cli.Put(ctx, prefix("chat", "game")+addr, addr, clientv3.WithLease(lease.ID)); err != nil {
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
