package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver/manual"

	"github.com/homing-grpc/homing/affinity"
)

// cost is what a channel costs.
type cost struct {
	conns          int
	client, server usage
}

// connected measures a channel over the loopback.
func (s setup) connected(srv *server, n, keys int) (c cost, err error) {
	if _, err := settle(srv, 0); err != nil { // of the last one
		return c, err
	}
	rb := manual.NewBuilderWithScheme("mesh")
	rb.InitialState(list(n, srv.port))
	before, err := srv.ask("all")
	if err != nil {
		return c, err
	}
	mine := used()
	cc, err := grpc.NewClient("mesh:///game", append(affinity.DialOptions(),
		grpc.WithResolvers(rb),
		grpc.WithDefaultServiceConfig(s.config.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		return c, err
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	rpc := testpb.NewTestServiceClient(cc)
	if s.keys {
		for i := range keys {
			if _, err := rpc.EmptyCall(affinity.WithKey(ctx, fmt.Sprint("player-", i)), &testpb.Empty{}); err != nil {
				return c, err
			}
		}
	}
	if s.keyless {
		for range 3 * n {
			if _, err := rpc.EmptyCall(ctx, &testpb.Empty{}); err != nil {
				return c, err
			}
		}
	}
	if c.conns, err = settle(srv, -1); err != nil {
		return c, err
	}
	after, err := srv.ask("all")
	c.server = after.since(before)
	c.client = used().since(mine)
	return c, err
}

// settle waits until connections neither come nor go, and there are want of them if that
// is not negative.
func settle(srv *server, want int) (n int, err error) {
	for same := 0; same < 10; same++ {
		time.Sleep(50 * time.Millisecond)
		u, err := srv.ask("conns")
		if err != nil {
			return 0, err
		}
		if u.Conns != n || (want >= 0 && n != want) {
			same = 0
		}
		n = u.Conns
	}
	return n, nil
}
