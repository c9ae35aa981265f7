package main

import (
	"fmt"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/stickybalancer"
)

// spread is what subsets of many clients come to.
type spread struct {
	conns            int // of all
	fewest, most     int // of a server
	fresh, freshNeed int // made when one server of a hundred drained; and had to be
	after            int // of all, when those are back
}

// subsets gives n clients a policy each, one after another, with a subset of n servers, in
// a bubble.
func subsets(n int) (sp spread, err error) {
	s := setup{config: stickybalancer.Config{Connect: stickybalancer.ConnectLazy, SubsetSize: subset}}
	all := list(n, 80)
	drained := resolver.State{Endpoints: append([]resolver.Endpoint(nil), all.Endpoints...)}
	leaving := 0
	for i := 0; i < n; i += 100 {
		leaving++
		m := endpointsmeta.FromEndpoint(all.Endpoints[i])
		m.Draining = true
		drained.Endpoints[i] = endpointsmeta.Set(all.Endpoints[i], m)
	}
	load := make(map[string]int, n)
	for range n {
		p, err := s.policy(all)
		if err != nil {
			return sp, err
		}
		leave := 0
		for _, addr := range p.cc.addrs {
			load[addr]++
			if endpointsmeta.FromEndpoint(drained.Endpoints[index(addr)]).Draining {
				leave++
			}
		}
		had := p.cc.connected
		leave = min(leave, n-had-(leaving-leave)) // no more than others that stay
		if err := p.take(drained); err != nil {
			return sp, err
		}
		sp.conns, sp.fresh, sp.freshNeed = sp.conns+had, sp.fresh+p.cc.connected-had, sp.freshNeed+leave
		if err := p.take(all); err != nil {
			return sp, err
		}
		sp.after += p.cc.connected
		p.lb.Close()
	}
	sp.fewest = n
	for _, ep := range all.Endpoints {
		at := load[ep.Addresses[0].Addr]
		sp.fewest, sp.most = min(sp.fewest, at), max(sp.most, at)
	}
	return sp, nil
}

// index is the place of an address in a list.
func index(addr string) int {
	var a, b, c, port int
	fmt.Sscanf(addr, "127.%d.%d.%d:%d", &a, &b, &c, &port)
	return (a-1)<<16 | b<<8 | c
}

// policy is one that has a list.
type policy struct {
	cc  *cc
	lb  balancer.Balancer
	cfg balancer.ClientConnState
}

// take gives it a list, and connects what it wants then.
func (p *policy) take(state resolver.State) error {
	p.cfg.ResolverState = state
	if err := p.lb.UpdateClientConnState(p.cfg); err != nil {
		return err
	}
	p.cc.settle()
	return nil
}

// policy brings one up, of which nobody has asked anything.
func (s setup) policy(state resolver.State) (*policy, error) {
	b := balancer.Get(stickybalancer.Name)
	js, err := s.config.MarshalJSON()
	if err != nil {
		return nil, err
	}
	cfg, err := b.(balancer.ConfigParser).ParseConfig(js)
	if err != nil {
		return nil, err
	}
	p := &policy{cc: &cc{}, cfg: balancer.ClientConnState{BalancerConfig: cfg}}
	p.lb = b.Build(p.cc, balancer.BuildOptions{})
	return p, p.take(state)
}
