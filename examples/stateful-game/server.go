package main

import (
	"context"
	"net"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/examples/stateful-game/gamepb"
)

const (
	// leaseTTL is how long etcd lists a server that died without a goodbye.
	leaseTTL = 5 * time.Second

	// drainTimeout is how long a leaving server waits for its players.
	drainTimeout = 5 * time.Second
)

// serve runs one game server on lis, registered under id, until ctx is done; it
// then leaves in order and returns nil.
func serve(ctx context.Context, cli *clientv3.Client, service, id string, lis net.Listener, opts ...registry.ServeOption) error {
	return serveWith(ctx, cli, service, id, lis, nil, opts...)
}

// serveWith is serve for a server whose interceptors do more.
func serveWith(ctx context.Context, cli *clientv3.Client, service, id string, lis net.Listener, more []affinity.ServerOption, opts ...registry.ServeOption) error {
	// The interceptors sign each answer with the id, so that players learn
	// where their state is.
	signed := affinity.ServerOptions(append(more, affinity.WithServerID(id))...)
	// The calls under way are what a leaving server waits for.
	var calls registry.Calls
	srv := grpc.NewServer(append(signed, grpc.StatsHandler(&calls))...)
	w := newWorld()
	gamepb.RegisterGameServer(srv, w)

	// Serve drains: no new players come, those who are here are still answered.
	// They would stay to the last moment if nobody told them.
	stop := context.AfterFunc(ctx, w.leave)
	defer stop()
	opts = append(opts,
		registry.WithTTL(leaseTTL), registry.WithDrainTimeout(drainTimeout), registry.WithCalls(&calls))
	return registry.Serve(ctx, cli, service, srv, lis, endpointsmeta.Meta{ID: id}, opts...)
}
