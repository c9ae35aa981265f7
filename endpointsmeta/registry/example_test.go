package registry_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os/signal"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// These need an etcd at localhost:2379, so they are compiled and not run. What they
// do is tested in the module e2e.

// newEtcdClient returns a client that notices a connection that was dropped in
// silence, and that tries again soon.
func newEtcdClient() *clientv3.Client {
	cli, err := clientv3.New(clientv3.Config{
		Endpoints:            []string{"localhost:2379"},
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second},
		})},
	})
	if err != nil {
		log.Fatal(err)
	}
	return cli
}

// A server that registers, serves, and leaves in order when it is told to stop.
func ExampleServe() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	lis, err := net.Listen("tcp", "10.0.0.7:7000")
	if err != nil {
		log.Fatal(err)
	}
	calls := new(registry.Calls)
	srv := grpc.NewServer(append(
		affinity.ServerOptions(affinity.WithServerID("game-1")),
		grpc.StatsHandler(calls))...)
	// … register services on srv …

	err = registry.Serve(ctx, newEtcdClient(), "game", srv, lis,
		endpointsmeta.Meta{ID: "game-1", Zone: "eu-1"},
		registry.WithCalls(calls), registry.WithDrainTimeout(time.Minute))
	if err != nil {
		log.Fatal(err)
	}
}

// A server that stops serving its sessions when etcd has lost it for longer than clients
// keep it, and throws away what it holds of them.
func ExampleWithFence() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	lis, err := net.Listen("tcp", "10.0.0.7:7000")
	if err != nil {
		log.Fatal(err)
	}
	fence := registry.NewFence(30 * time.Second) // the absentGrace of its clients
	srv := grpc.NewServer(affinity.ServerOptions(
		affinity.WithServerID("game-1"), affinity.WithFence(fence))...)
	// … register services on srv …

	err = registry.Serve(ctx, newEtcdClient(), "game", srv, lis,
		endpointsmeta.Meta{ID: "game-1"}, registry.WithFence(fence),
		registry.WithNotify(func(s registry.State) {
			if s == registry.Fenced {
				// … drop the state of all sessions …
			}
		}))
	if err != nil {
		log.Fatal(err)
	}
}

// A server that keeps its own order of starting and stopping.
func ExampleRegister() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	reg, err := registry.Register(ctx, newEtcdClient(), "game", "10.0.0.7:7000",
		endpointsmeta.Meta{ID: "game-1", Weight: 3},
		registry.WithTTL(5*time.Second),
		registry.WithNotify(func(s registry.State) { log.Print("registration: ", s) }))
	if errors.Is(err, registry.ErrIDTaken) {
		log.Fatal("two servers were given one id: ", err)
	}
	if err != nil {
		log.Fatal(err)
	}

	// Half as much new work from now on:
	err = reg.Update(ctx, func(m *endpointsmeta.Meta) { m.Weight = 1 })
	if err != nil {
		log.Print(err)
	}
	// None:
	if err := reg.Drain(ctx); err != nil {
		log.Print(err)
	}
	// Gone:
	if err := reg.Close(ctx); err != nil {
		log.Print(err)
	}
}

// A client. One builder serves any number of channels.
func ExampleNewBuilder() {
	builder, err := registry.NewBuilder(newEtcdClient())
	if err != nil {
		log.Fatal(err)
	}
	conn, err := grpc.NewClient("etcd:///game", append(affinity.DialOptions(),
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
}

func ExampleList() {
	servers, err := registry.List(context.Background(), newEtcdClient(), "game")
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range servers {
		fmt.Println(s.Meta.ID, s.Addr, s.Meta.Draining)
	}
}

// A call to every server of a service: a message for all rooms, say. Each call requires
// its server, so none gets two and none is left out. A server that has gone meanwhile
// is an error of that call, after the channel's reconnectWindow at the latest.
func ExampleList_everyServer() {
	cli := newEtcdClient()
	builder, err := registry.NewBuilder(cli)
	if err != nil {
		log.Fatal(err)
	}
	conn, err := grpc.NewClient("etcd:///game",
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	rpc := testpb.NewTestServiceClient(conn)

	servers, err := registry.List(context.Background(), cli, "game")
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for _, s := range servers {
		all.Go(func() {
			if _, err := rpc.EmptyCall(affinity.Require(ctx, s.Meta.ID), &testpb.Empty{}); err != nil {
				log.Printf("%s did not hear: %v", s.Meta.ID, err)
			}
		})
	}
	all.Wait()
}

func ExampleWatch() {
	for servers, err := range registry.Watch(context.Background(), newEtcdClient(), "game") {
		if err != nil {
			log.Print("the last list stands: ", err)
			continue
		}
		log.Print(len(servers), " servers")
	}
}

// A server that takes half as much new work while it warms up.
func ExampleRegistration_Update() {
	ctx := context.Background()
	reg, err := registry.Register(ctx, newEtcdClient(), "game", "10.0.0.7:7000", endpointsmeta.Meta{ID: "game-1", Weight: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer reg.Close(ctx)
	// … when it is warm:
	if err := reg.Update(ctx, func(m *endpointsmeta.Meta) { m.Weight = 2 }); err != nil {
		log.Print(err)
	}
}

// A server that ends itself when it cannot get its record back.
func ExampleRegistration_State() {
	ctx := context.Background()
	reg, err := registry.Register(ctx, newEtcdClient(), "game", "10.0.0.7:7000", endpointsmeta.Meta{ID: "game-1"})
	if err != nil {
		log.Fatal(err)
	}
	defer reg.Close(ctx)
	for lost := 0; lost < 10; time.Sleep(time.Second) {
		if lost++; reg.State() != registry.Lost {
			lost = 0
		}
	}
	log.Print("out of etcd for ten seconds")
}

// A client of servers that register by hand, as plain addresses, and of those that have
// moved on.
func ExampleWithPlainAddresses() {
	builder, err := registry.NewBuilder(newEtcdClient(), registry.WithPlainAddresses())
	if err != nil {
		log.Fatal(err)
	}
	conn, err := grpc.NewClient("etcd:////grpclb/game", // keys are /grpclb/game/…
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
}

// A server behind an address that is not the one it listens on, and whose drain may take
// a minute.
func ExampleWithAdvertise() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	lis, err := net.Listen("tcp", ":7000")
	if err != nil {
		log.Fatal(err)
	}
	err = registry.Serve(ctx, newEtcdClient(), "game", grpc.NewServer(), lis, endpointsmeta.Meta{ID: "game-1"},
		registry.WithAdvertise("game-1.game.default.svc:7000"), registry.WithDrainTimeout(time.Minute))
	if err != nil {
		log.Fatal(err)
	}
}

// A server that replaces one which has lost its disk, and whose lease has not ended yet.
func ExampleWithTakeover() {
	_, err := registry.Register(context.Background(), newEtcdClient(), "game", "10.0.0.8:7000",
		endpointsmeta.Meta{ID: "game-1"}, registry.WithTakeover())
	if err != nil {
		log.Fatal(err)
	}
}

// A client of etcd that has a password, one of many.
func ExampleShareToken() {
	cli, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{"localhost:2379"},
		Username:    "game",
		Password:    "correct horse",
		DialOptions: []grpc.DialOption{registry.ShareToken()},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
}
