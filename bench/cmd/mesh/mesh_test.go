package main

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/test/bufconn"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

func TestConnectionsAreThoseThatCallsNeed(t *testing.T) {
	want := map[string]func(conns int) bool{
		"EAGER":                        func(n int) bool { return n == 100 },
		"EAGER, subsetSize 20":         func(n int) bool { return n == 100 },
		"LAZY, keys":                   func(n int) bool { return n > 1 && n <= 30 },
		"LAZY, keyless":                func(n int) bool { return n == 100 },
		"LAZY, subsetSize 20, keyless": func(n int) bool { return n == subset },
		"LAZY, subsetSize 20, keys":    func(n int) bool { return n > subset && n <= subset+30 },
	}
	for _, s := range setups {
		t.Run(s.name, func(t *testing.T) {
			conns, _, err := s.alone(100, 30)
			if err != nil {
				t.Fatal(err)
			}
			if !want[s.name](conns) {
				t.Errorf("%d connections", conns)
			}
		})
	}
}

func TestASubsetChangesNoMoreThanItMust(t *testing.T) {
	sp, err := subsets(100)
	if err != nil {
		t.Fatal(err)
	}
	if sp.conns != 100*subset || sp.fresh != sp.freshNeed || sp.after != sp.conns+sp.fresh {
		t.Errorf("%+v", sp)
	}
}

// TestAServerMayEndConnectionsThatRest is how connections become fewer under LAZY.
func TestAServerMayEndConnectionsThatRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lis, c := bufconn.Listen(1<<16), new(conns)
		srv := grpc.NewServer(grpc.StatsHandler(c), grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: time.Minute}))
		testpb.RegisterTestServiceServer(srv, game{})
		go srv.Serve(lis)
		defer srv.Stop()
		rb := manual.NewBuilderWithScheme("mesh")
		rb.InitialState(list(1, 80))
		cfg := stickybalancer.Config{Connect: stickybalancer.ConnectLazy}
		cc, err := grpc.NewClient("mesh:///game", grpc.WithResolvers(rb), grpc.WithDefaultServiceConfig(cfg.ServiceConfig()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()
		rpc := testpb.NewTestServiceClient(cc)
		for range 3 {
			if _, err := rpc.EmptyCall(affinity.WithKey(t.Context(), "player-7"), &testpb.Empty{}); err != nil {
				t.Fatal(err)
			}
			if n := c.n.Load(); n != 1 {
				t.Fatalf("%d connections after a call", n)
			}
			time.Sleep(10 * time.Minute)
			if n := c.n.Load(); n != 0 {
				t.Fatalf("%d connections at rest", n)
			}
		}
	})
}
