package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing/synctest"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/experimental/stats"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
)

// list is n servers at as many addresses of the loopback.
func list(n, port int) (s resolver.State) {
	for i := range n {
		addr := fmt.Sprintf("127.%d.%d.%d:%d", 1+i>>16, i>>8&255, i&255, port)
		ep := resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr}}}
		s.Endpoints = append(s.Endpoints, endpointsmeta.Set(ep, endpointsmeta.Meta{ID: fmt.Sprint("game-", i)}))
	}
	return s
}

// cc is gRPC as the policy sees it, with connections that are up as soon as they are
// wanted.
type cc struct {
	balancer.ClientConn

	mu        sync.Mutex
	picker    balancer.Picker
	wanted    []*conn
	connected int
	addrs     []string // of those
}

type conn struct {
	balancer.SubConn
	cc       *cc
	addr     string
	listener func(balancer.SubConnState)
	health   func(balancer.SubConnState)
}

func (*cc) MetricsRecorder() stats.MetricsRecorder                   { return stats.UnimplementedMetricsRecorder{} }
func (*cc) Target() string                                           { return "mesh:///game" }
func (*cc) ResolveNow(resolver.ResolveNowOptions)                    {}
func (*conn) Shutdown()                                              {}
func (*conn) UpdateAddresses([]resolver.Address)                     {}
func (c *conn) RegisterHealthListener(l func(balancer.SubConnState)) { c.health = l }

func (c *cc) NewSubConn(addrs []resolver.Address, opts balancer.NewSubConnOptions) (balancer.SubConn, error) {
	return &conn{cc: c, addr: addrs[0].Addr, listener: opts.StateListener}, nil
}

func (c *cc) UpdateState(s balancer.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.picker = s.Picker
}

func (c *cc) newest() balancer.Picker {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.picker
}

func (c *conn) Connect() {
	c.cc.mu.Lock()
	defer c.cc.mu.Unlock()
	c.cc.wanted = append(c.cc.wanted, c)
}

// connect makes the wanted connections, and reports whether there were any.
func (c *cc) connect() bool {
	c.mu.Lock()
	wanted := c.wanted
	c.wanted = nil
	c.connected += len(wanted)
	for _, sc := range wanted {
		c.addrs = append(c.addrs, sc.addr)
	}
	c.mu.Unlock()
	for _, sc := range wanted {
		sc.listener(balancer.SubConnState{ConnectivityState: connectivity.Connecting})
		sc.listener(balancer.SubConnState{ConnectivityState: connectivity.Ready})
		if sc.health != nil {
			sc.health(balancer.SubConnState{ConnectivityState: connectivity.Ready})
		}
	}
	return len(wanted) > 0
}

// settle connects until nothing is wanted. The policy asks in goroutines of its own, so it
// waits until they have, which only a bubble of fake time can tell.
func (c *cc) settle() {
	for synctest.Wait(); c.connect(); synctest.Wait() {
	}
}

// pick makes a call, which waits for the connection that it wants.
func (c *cc) pick(ctx context.Context) error {
	for range 10 {
		_, err := c.newest().Pick(balancer.PickInfo{Ctx: ctx, FullMethodName: "/game/Move"})
		c.settle()
		if !errors.Is(err, balancer.ErrNoSubConnAvailable) {
			return err
		}
	}
	return errors.New("a call waits for ever")
}

// alone measures the policy without a network, in a bubble.
func (s setup) alone(n, keys int) (conns int, u usage, err error) {
	state := list(n, 80)
	before := used()
	p, err := s.policy(state)
	if err != nil {
		return 0, u, err
	}
	c := p.cc
	defer p.lb.Close()
	if s.keys {
		for i := range keys {
			if err := c.pick(affinity.WithKey(context.Background(), fmt.Sprint("player-", i))); err != nil {
				return 0, u, err
			}
		}
	}
	if s.keyless {
		for range 3 * n {
			if err := c.pick(context.Background()); err != nil {
				return 0, u, err
			}
		}
	}
	u = used().since(before)
	runtime.KeepAlive(state)
	return c.connected, u, nil
}
