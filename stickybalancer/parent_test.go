package stickybalancer_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/stats"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/metricstest"
	"github.com/homing-grpc/homing/stickybalancer"
)

// failover is a parent of two custom_round_robin, as priority is one: each has one
// endpoint of the list, and calls go by the first until the test says otherwise.
type failover struct {
	balancer.ClientConn
	children [2]*failoverChild

	mu  sync.Mutex
	use int

	slow bool     // what SubConns report waits for report
	late []func() // that waits
}

type failoverChild struct {
	balancer.ClientConn
	balancer.Balancer
	parent *failover
	index  int
	state  balancer.State // guarded by parent.mu
}

// failovers has the parent that was made last.
var failovers = make(chan *failover, 1)

type failoverBuilder struct{}

func init() { balancer.Register(failoverBuilder{}) }

func (failoverBuilder) Name() string { return "failover_for_test" }

func (failoverBuilder) Build(cc balancer.ClientConn, opts balancer.BuildOptions) balancer.Balancer {
	p := &failover{ClientConn: cc}
	for i := range p.children {
		c := &failoverChild{ClientConn: cc, parent: p, index: i}
		c.Balancer = balancer.Get(stickybalancer.Name).Build(c, opts)
		p.children[i] = c
	}
	failovers <- p
	return p
}

func (c *failoverChild) UpdateState(s balancer.State) {
	c.parent.mu.Lock()
	defer c.parent.mu.Unlock()
	c.state = s
	if c.parent.use == c.index {
		c.parent.ClientConn.UpdateState(s)
	}
}

func (p *failover) UpdateClientConnState(s balancer.ClientConnState) error {
	for i, c := range p.children {
		one := s
		one.ResolverState.Endpoints = s.ResolverState.Endpoints[i : i+1]
		one.BalancerConfig = nil
		if err := c.Balancer.UpdateClientConnState(one); err != nil {
			return err
		}
	}
	return nil
}

func (p *failover) ResolverError(error) {}

func (p *failover) UpdateSubConnState(balancer.SubConn, balancer.SubConnState) {}

func (p *failover) ExitIdle() {}

func (p *failover) Close() {
	for _, c := range p.children {
		c.Balancer.Close()
	}
}

// goBy makes calls go by that child.
func (p *failover) goBy(index int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.use = index
	p.ClientConn.UpdateState(p.children[index].state)
}

func (c *failoverChild) NewSubConn(addrs []resolver.Address, opts balancer.NewSubConnOptions) (balancer.SubConn, error) {
	p, tell := c.parent, opts.StateListener
	opts.StateListener = func(s balancer.SubConnState) {
		p.mu.Lock()
		slow := p.slow
		if slow {
			p.late = append(p.late, func() { tell(s) })
		}
		p.mu.Unlock()
		if !slow {
			tell(s)
		}
	}
	//lint:ignore SA1019 pick_first's
	return c.ClientConn.NewSubConn(addrs, opts)
}

// delay makes what SubConns report come late, as on a busy machine.
func (p *failover) delay() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow = true
}

// report is what comes late.
func (p *failover) report() {
	p.mu.Lock()
	late := p.late
	p.late, p.slow = nil, false
	p.mu.Unlock()
	for _, f := range late {
		f()
	}
}

// inFailover runs f in a world whose servers a, which hangs, and b have a policy each.
func inFailover(t *testing.T, f func(t *testing.T, w *world, p *failover, r *metricstest.Recorder)) {
	t.Helper()
	r := new(metricstest.Recorder)
	inWorldWith(t, `{"loadBalancingConfig":[{"failover_for_test":{}}]}`, func(t *testing.T, w *world) {
		w.hold("a")
		w.start("b")
		w.list("a", "b")
		f(t, w, <-failovers, r)
	}, grpc.WithStatsHandler(r))
}

func TestAnAttemptThatOnePolicyHoldsAndAnotherSendsWasHeldUntilThen(t *testing.T) {
	inFailover(t, func(t *testing.T, w *world, p *failover, r *metricstest.Recorder) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		held := w.async(ctx)
		time.Sleep(2 * time.Second)
		p.goBy(1)
		_, took, err := held()
		require.NoError(t, err)
		require.Equal(t, 2*time.Second, took)
		cancel()
		synctest.Wait()
		require.Equal(t, []float64{2}, r.Histo(lb+"queue_duration", "world:///game", affinity.WhyRoundRobin))
		require.Empty(t, r.Histo(lb+"queue_duration", "world:///game", "none"))
	})
}

func TestAnAttemptIsHeldOnWhenThePolicyThatHeldItCloses(t *testing.T) {
	inFailover(t, func(t *testing.T, w *world, p *failover, r *metricstest.Recorder) {
		held := w.async(context.Background())
		time.Sleep(2 * time.Second)
		p.children[0].Balancer.Close()
		synctest.Wait()
		time.Sleep(time.Second)
		p.goBy(1)
		_, _, err := held()
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, []float64{3}, r.Histo(lb+"queue_duration", "world:///game", affinity.WhyRoundRobin))
	})
}

// attempts counts those that begin, as gRPC's own metrics do.
type attempts struct {
	metricstest.Recorder
	n atomic.Int64
}

func (a *attempts) HandleRPC(_ context.Context, s stats.RPCStats) {
	if _, is := s.(*stats.Begin); is {
		a.n.Add(1)
	}
}

// gRPC picks again for an attempt whose connection broke before the picker that says so
// came: picks are what policies chose, as in gRFC A78, and not attempts.
func TestAPickOfAConnectionThatHasBrokenCountsAndSoDoesTheNextOfTheAttempt(t *testing.T) {
	r := new(attempts)
	inWorldWith(t, `{"loadBalancingConfig":[{"failover_for_test":{}}]}`, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.reaches("a", context.Background())
		p := <-failovers
		p.delay()
		w.stop("a")
		call := w.async(context.Background())
		p.report()
		p.goBy(1)
		server, _, err := call()
		require.NoError(t, err)
		require.Equal(t, "b", server)
		require.EqualValues(t, 2, r.n.Load())
		require.EqualValues(t, 3, r.Collect()[of("picks", affinity.WhyRoundRobin)])
	}, grpc.WithStatsHandler(r))
}
