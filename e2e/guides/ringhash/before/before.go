// Package before is a client that hashes by a header with gRPC's ring_hash: what guide
// ringhash starts from. Its servers are those of guide roundrobin.
package before

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	_ "google.golang.org/grpc/balancer/ringhash"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// Dial returns a channel to all servers of the game.
func Dial(cli *clientv3.Client) (*grpc.ClientConn, error) {
	builder, err := resolver.NewBuilder(cli)
	if err != nil {
		return nil, err
	}
	opts := []grpc.DialOption{
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"ring_hash_experimental":{"requestHashHeader":"room"}}]}`),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	}
	return grpc.NewClient("etcd:///game", opts...)
}

// InRoom returns a context for calls about a room.
func InRoom(ctx context.Context, room string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "room", room)
}
