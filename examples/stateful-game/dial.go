package main

import (
	"encoding/json"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// reconnectWindow is how long a player's call waits for a server that has lost
// its connection before it gives it up for dead.
const reconnectWindow = 1500 * time.Millisecond

// dial returns a channel to the servers that are registered under service.
func dial(cli *clientv3.Client, service string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	etcd, err := registry.NewBuilder(cli)
	if err != nil {
		return nil, err
	}
	return dialBy(etcd, service, opts...)
}

// dialBy is dial for a program that has more channels than one: those that share a
// resolver share what it remembers while etcd is away.
func dialBy(etcd resolver.Builder, service string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	// Try a lost server a few times within the window, not once.
	connect := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: time.Second}
	connect.Backoff.BaseDelay = 100 * time.Millisecond
	connect.Backoff.MaxDelay = time.Second

	opts = append(opts,
		grpc.WithResolvers(etcd),
		grpc.WithDefaultServiceConfig(serviceConfig()),
		grpc.WithConnectParams(connect),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	)
	// The interceptors go last: they must see what the others put into a call.
	return grpc.NewClient("etcd:///"+service, append(opts, affinity.DialOptions()...)...)
}

// serviceConfig selects the balancing policy and, beside it, retries Join: a
// server that is about to leave refuses newcomers, which changes nothing and
// may be tried again elsewhere. For the policy alone Config.ServiceConfig does.
func serviceConfig() string {
	type object = map[string]any
	js, err := json.Marshal(object{
		"loadBalancingConfig": []object{{
			stickybalancer.Name: stickybalancer.Config{ReconnectWindow: reconnectWindow},
		}},
		"methodConfig": []object{{
			"name": []object{{"service": "homing.examples.game.v1.Game", "method": "Join"}},
			"retryPolicy": object{
				"maxAttempts":          5,
				"initialBackoff":       "0.05s",
				"maxBackoff":           "0.5s",
				"backoffMultiplier":    2,
				"retryableStatusCodes": []string{"UNAVAILABLE"},
			},
		}},
	})
	if err != nil {
		panic(err) // nothing in there can fail
	}
	return string(js)
}
