package bench

import (
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/pickfirst"
	"google.golang.org/grpc/resolver"
)

// floor is no rival: a pick_first policy for each endpoint, which owns the connection in
// round_robin and in ours, and nothing else. What it takes, neither can save.
var floor = subject{"pick_first-each", "pick_first_each_bench", ``}

func init() { balancer.Register(floorBuilder{}) }

type floorBuilder struct{}

func (floorBuilder) Name() string { return floor.policy }

func (floorBuilder) Build(cc balancer.ClientConn, opts balancer.BuildOptions) balancer.Balancer {
	return &floorPolicy{ClientConn: cc, opts: opts}
}

// floorPolicy is the ClientConn of its children, too: their reports go to gRPC as they are.
type floorPolicy struct {
	balancer.ClientConn
	opts     balancer.BuildOptions
	children []balancer.Balancer
}

func (p *floorPolicy) UpdateClientConnState(s balancer.ClientConnState) error {
	for _, ep := range s.ResolverState.Endpoints {
		child := balancer.Get(pickfirst.Name).Build(p, p.opts)
		p.children = append(p.children, child)
		one := balancer.ClientConnState{ResolverState: resolver.State{Endpoints: []resolver.Endpoint{ep}}}
		if err := child.UpdateClientConnState(one); err != nil {
			return err
		}
	}
	return nil
}

func (p *floorPolicy) Close() {
	for _, c := range p.children {
		c.Close()
	}
}

func (*floorPolicy) ResolverError(error)                                        {}
func (*floorPolicy) ExitIdle()                                                  {}
func (*floorPolicy) UpdateSubConnState(balancer.SubConn, balancer.SubConnState) {}
