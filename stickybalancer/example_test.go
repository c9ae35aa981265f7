package stickybalancer_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/stickybalancer"
)

func ExampleConfig_ServiceConfig() {
	fmt.Println(stickybalancer.Config{}.ServiceConfig())
	fmt.Println(stickybalancer.Config{ReconnectWindow: 5 * time.Second, Zone: "eu-1"}.ServiceConfig())
	// Output:
	// {"loadBalancingConfig":[{"custom_round_robin":{}}]}
	// {"loadBalancingConfig":[{"custom_round_robin":{"reconnectWindow":"5s","zone":"eu-1"}}]}
}

// A service config with more in it than the policy is one map: Config takes its
// place in it.
func ExampleConfig_MarshalJSON() {
	serviceConfig, err := json.MarshalIndent(map[string]any{
		"loadBalancingConfig": []any{map[string]any{
			stickybalancer.Name: stickybalancer.Config{ReconnectWindow: -1}, // do not wait
		}},
		"healthCheckConfig": map[string]any{"serviceName": "game.v1.Game"},
		"methodConfig": []any{map[string]any{
			"name":         []any{map[string]any{"service": "game.v1.Game"}},
			"timeout":      "1s",
			"waitForReady": true,
		}},
	}, "", "  ")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(serviceConfig))
	// Output:
	// {
	//   "healthCheckConfig": {
	//     "serviceName": "game.v1.Game"
	//   },
	//   "loadBalancingConfig": [
	//     {
	//       "custom_round_robin": {
	//         "reconnectWindow": "0s"
	//       }
	//     }
	//   ],
	//   "methodConfig": [
	//     {
	//       "name": [
	//         {
	//           "service": "game.v1.Game"
	//         }
	//       ],
	//       "timeout": "1s",
	//       "waitForReady": true
	//     }
	//   ]
	// }
}

// Where a key lives, and who would have it next, of servers that some resolver, or
// registry.List, has told of.
func ExampleOrder() {
	var servers []resolver.Endpoint
	for i, id := range []string{"game-1", "game-2", "game-3"} {
		servers = append(servers, endpointsmeta.Set(
			resolver.Endpoint{Addresses: []resolver.Address{{Addr: fmt.Sprintf("10.0.0.%d:7000", i+1)}}},
			endpointsmeta.Meta{ID: id, Draining: id == "game-3"}))
	}
	for _, s := range stickybalancer.Order("room-7", servers) {
		fmt.Println(endpointsmeta.FromEndpoint(s).ID, s.Addresses[0].Addr)
	}
	// Output:
	// game-1 10.0.0.1:7000
	// game-2 10.0.0.2:7000
	// game-3 10.0.0.3:7000
}

// gameServer says who it is.
type gameServer struct {
	testpb.UnimplementedTestServiceServer
	id string
}

func (s gameServer) UnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	return &testpb.SimpleResponse{Hostname: s.id}, nil
}

// Three servers, and a channel whose calls say where they belong. The resolver
// here is a list by hand; the one in package registry finds servers in etcd.
func Example() {
	var endpoints []resolver.Endpoint
	for _, id := range []string{"game-1", "game-2", "game-3"} {
		lis, err := net.Listen("tcp", "localhost:0")
		if err != nil {
			log.Fatal(err)
		}
		server := grpc.NewServer()
		testpb.RegisterTestServiceServer(server, gameServer{id: id})
		go server.Serve(lis)
		defer server.Stop()
		endpoints = append(endpoints, endpointsmeta.Set(
			resolver.Endpoint{Addresses: []resolver.Address{{Addr: lis.Addr().String()}}},
			endpointsmeta.Meta{ID: id}))
	}
	r := manual.NewBuilderWithScheme("example")
	r.InitialState(resolver.State{Endpoints: endpoints})

	conn, err := grpc.NewClient("example:///game",
		grpc.WithResolvers(r),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	client := testpb.NewTestServiceClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	say := func(what string, ctx context.Context) {
		reply, err := client.UnaryCall(ctx, &testpb.SimpleRequest{})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(what, reply.GetHostname())
	}
	say("by id:", affinity.With(ctx, "game-2"))
	say("by id again:", affinity.With(ctx, "game-2"))
	say("by key:", affinity.WithKey(ctx, "room-7"))
	say("by key again:", affinity.WithKey(ctx, "room-7"))
	// Output:
	// by id: game-2
	// by id again: game-2
	// by key: game-3
	// by key again: game-3
}
