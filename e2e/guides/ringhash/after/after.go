// Package after is the client of guide ringhash on homing.
package after

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/homing-grpc/homing/affinity"
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
		grpc.WithDefaultServiceConfig(stickybalancer.Config{KeyHeader: "room"}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	}
	opts = append(opts, affinity.DialOptions()...)
	return grpc.NewClient("etcd:///game", opts...)
}

// InRoom returns a context for calls about a room.
func InRoom(ctx context.Context, room string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "room", room)
}

// InRoomByContext does the same without a header, and costs less.
func InRoomByContext(ctx context.Context, room string) context.Context {
	return affinity.WithKey(ctx, room)
}
