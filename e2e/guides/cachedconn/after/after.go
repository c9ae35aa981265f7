// Package after is the client and the server of guide cachedconn on homing.
package after

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

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

func name(schema, service string) string { return schema + ":///" + service }

var (
	mu       sync.Mutex
	conns    = make(map[string]*grpc.ClientConn)
	builders = make(map[string]resolver.Builder) // one etcd client for all services
)

// GetConn returns the channel to a service. etcd is a list of addresses, with commas.
func GetConn(schema, etcd, service string) (*grpc.ClientConn, error) {
	mu.Lock()
	defer mu.Unlock()
	target := "etcd:///" + name(schema, service)
	if conn, ok := conns[target]; ok {
		return conn, nil
	}
	builder, err := builderOf(etcd)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(target, append(affinity.DialOptions(),
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		return nil, err
	}
	conns[target] = conn
	return conn, nil
}

// Close closes the channel to a service, and forgets it.
func Close(schema, service string) {
	mu.Lock()
	defer mu.Unlock()
	if conn, ok := conns["etcd:///"+name(schema, service)]; ok {
		conn.Close()
		delete(conns, "etcd:///"+name(schema, service))
	}
}

func builderOf(etcd string) (resolver.Builder, error) {
	if b, ok := builders[etcd]; ok {
		return b, nil
	}
	cli, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(etcd, ",")})
	if err != nil {
		return nil, err
	}
	b, err := registry.NewBuilder(cli, registry.WithPlainAddresses())
	if err != nil {
		return nil, err
	}
	builders[etcd] = b
	return b, nil
}

// Serve serves the game on lis, in etcd, until ctx ends.
func Serve(ctx context.Context, cli *clientv3.Client, id string, game testpb.TestServiceServer, lis net.Listener) error {
	calls := new(registry.Calls)
	srv := grpc.NewServer(append(
		affinity.ServerOptions(affinity.WithServerID(id)),
		grpc.StatsHandler(calls))...)
	testpb.RegisterTestServiceServer(srv, game)
	return registry.Serve(ctx, cli, name("chat", "game"), srv, lis,
		endpointsmeta.Meta{ID: id}, registry.WithCalls(calls))
}
