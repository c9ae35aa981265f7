package main

import (
	"context"
	"fmt"
	"net"
	"slices"
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
			synctest.Test(t, func(t *testing.T) {
				conns, _, err := s.alone(100, 30)
				if err != nil {
					t.Fatal(err)
				}
				if !want[s.name](conns) {
					t.Errorf("%d connections", conns)
				}
			})
		})
	}
}

func TestASubsetChangesNoMoreThanItMust(t *testing.T) {
	for n, want := range map[int]spread{
		5:   {conns: 25},
		100: {conns: 100 * subset},
	} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sp, err := subsets(n)
				if err != nil {
					t.Fatal(err)
				}
				if sp.conns != want.conns || sp.fresh != sp.freshNeed || sp.after != sp.conns+sp.fresh ||
					(n > subset) != (sp.fresh > 0) {
					t.Errorf("%+v", sp)
				}
			})
		})
	}
}

func TestABadFlagIsNamed(t *testing.T) {
	good := flags{servers: "10,20", keys: 1}
	if sizes, err := good.check(nil); err != nil || !slices.Equal(sizes, []int{10, 20}) {
		t.Errorf("got %v, %v", sizes, err)
	}
	for want, bad := range map[string]flags{
		`-servers must be numbers of 1 to 1,000,000, got "0"`:       {servers: "0", keys: 1},
		`-servers must be numbers of 1 to 1,000,000, got "-3"`:      {servers: "10,-3", keys: 1},
		`-servers must be numbers of 1 to 1,000,000, got ""`:        {servers: "10,", keys: 1},
		`-servers must be numbers of 1 to 1,000,000, got "2000000"`: {servers: "2000000", keys: 1},
		`-keys must be 1 or more, got 0`:                            {servers: "10"},
		`-sockets must be 0 to 1,000,000, got -1`:                   {servers: "10", keys: 1, sockets: -1},
		`-fleet must be 0 to 1,000,000, got -5`:                     {servers: "10", keys: 1, fleet: -5},
	} {
		if _, err := bad.check(nil); err == nil || err.Error() != want {
			t.Errorf("%+v: got %v, want %s", bad, err, want)
		}
	}
	if _, err := good.check([]string{"20"}); err == nil || err.Error() != `there are flags only, got "20"` {
		t.Errorf("an argument: got %v", err)
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
