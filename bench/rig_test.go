package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/leastrequest"
	_ "google.golang.org/grpc/balancer/ringhash"
	"google.golang.org/grpc/balancer/roundrobin"
	"google.golang.org/grpc/balancer/weightedroundrobin"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental/stats"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/homing-grpc/homing/affinity"
	_ "github.com/homing-grpc/homing/bench/ringcap"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/internal/metricstest"
	"github.com/homing-grpc/homing/stickybalancer"
)

// channel is the balancer.ClientConn of a policy under test: all that a policy
// asks of gRPC, and no network. Its one lock costs all policies the same.
type channel struct {
	balancer.ClientConn
	recorder stats.MetricsRecorder // nil if there is none

	mu        sync.Mutex
	picker    balancer.Picker
	published int
	conns     []*conn
	wanted    []*conn // to be connected, in the order of the asking

	// old hears of connections made without a listener, as gRPC has it.
	old func(balancer.SubConn, balancer.SubConnState)

	// atOnce makes a connection READY when the next one is asked for, while the policy
	// is still at its list: it may then publish once, where n pickers of n endpoints
	// would take minutes.
	atOnce bool
	early  int // how many were
}

// conn is a connection that is made when the benchmark says so.
type conn struct {
	balancer.SubConn
	channel  *channel
	addr     string
	listener func(balancer.SubConnState)
	health   func(balancer.SubConnState)
	shut     bool
}

// MetricsRecorder returns that of the subject. Nobody records the others.
func (c *channel) MetricsRecorder() stats.MetricsRecorder {
	if c.recorder == nil {
		return stats.UnimplementedMetricsRecorder{}
	}
	return c.recorder
}

// listed asks for each descriptor once more, as gRPC's list of recorders does.
type listed struct{ *metricstest.Recorder }

func (l listed) RegisterAsyncReporter(r stats.AsyncMetricReporter, metrics ...stats.AsyncMetric) func() {
	for _, m := range metrics {
		m.Descriptor()
	}
	return l.Recorder.RegisterAsyncReporter(r, metrics...)
}

func (*channel) Target() string                                      { return "bench:///n" }
func (*channel) ResolveNow(resolver.ResolveNowOptions)               {}
func (c *channel) RemoveSubConn(sc balancer.SubConn)                 { sc.Shutdown() }
func (*conn) UpdateAddresses([]resolver.Address)                     {}
func (c *conn) RegisterHealthListener(l func(balancer.SubConnState)) { c.health = l }

func (c *channel) NewSubConn(addrs []resolver.Address, opts balancer.NewSubConnOptions) (balancer.SubConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sc := &conn{channel: c, addr: addrs[0].Addr, listener: opts.StateListener}
	if sc.listener == nil {
		sc.listener = func(s balancer.SubConnState) { c.old(sc, s) }
	}
	c.conns = append(c.conns, sc)
	return sc, nil
}

func (c *channel) UpdateState(s balancer.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.picker = s.Picker
	c.published++
}

func (c *conn) Connect() {
	if c.channel.atOnce {
		c.channel.early += c.channel.connect()
	}
	c.channel.mu.Lock()
	defer c.channel.mu.Unlock()
	c.channel.wanted = append(c.channel.wanted, c)
}

func (c *conn) Shutdown() {
	c.channel.mu.Lock()
	defer c.channel.mu.Unlock()
	c.shut = true
}

func (c *conn) is(s connectivity.State) { c.listener(balancer.SubConnState{ConnectivityState: s}) }

func (c *channel) newest() (balancer.Picker, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.picker, c.published
}

// next takes the next connection that was asked for, nil if there is none.
func (c *channel) next() *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.wanted) > 0 {
		sc := c.wanted[0]
		c.wanted = c.wanted[1:]
		if !sc.shut {
			return sc
		}
	}
	return nil
}

// connect makes the connections that were asked for READY, one at a time, and
// returns how many that were.
func (c *channel) connect() (n int) {
	for sc := c.next(); sc != nil; sc = c.next() {
		sc.is(connectivity.Connecting)
		sc.is(connectivity.Ready)
		if sc.health != nil {
			sc.health(balancer.SubConnState{ConnectivityState: connectivity.Ready})
		}
		n++
	}
	return n
}

// subject is a policy under test.
type subject struct {
	label  string // in the benchmark's name
	policy string
	config string
}

var (
	roundRobin    = subject{"round_robin", roundrobin.Name, `{}`}
	weightedRobin = subject{"weighted_round_robin", weightedroundrobin.Name, `{}`}
	leastRequest  = subject{"least_request", leastrequest.Name, `{}`}
	ringHash      = subject{"ring_hash", "ring_hash_experimental", `{"requestHashHeader": "affinity-key"}`}
	ringHash64k   = subject{"ring_hash-64k", "ring_hash_experimental", `{"requestHashHeader": "affinity-key", "minRingSize": 65536, "maxRingSize": 65536}`}
	theRecipe     = subject{"recipe", recipeName, ``}
	ours          = subject{"custom_round_robin", stickybalancer.Name, `{}`}
	recorded      = subject{"custom_round_robin-recorded", stickybalancer.Name, `{}`}
	noHeaders     = subject{"custom_round_robin-headers=off", stickybalancer.Name, `{"idHeader": "", "keyHeader": ""}`}
)

// rig is one policy with its endpoints.
type rig struct {
	channel *channel
	lb      balancer.Balancer
	cfg     serviceconfig.LoadBalancingConfig
	state   resolver.State // the list that ready began with
}

func id(i int) string { return fmt.Sprintf("game-%d", i) }

// list is the resolver's: n endpoints with an id each, for policies that read
// endpoints and for those that read addresses.
func list(n int) resolver.State {
	var s resolver.State
	for i := range n {
		a := resolver.Address{Addr: fmt.Sprintf("10.%d.%d.%d:80", i>>16, i>>8&255, i&255)}
		ep := endpointsmeta.Set(resolver.Endpoint{Addresses: []resolver.Address{a}}, endpointsmeta.Meta{ID: id(i)})
		s.Endpoints = append(s.Endpoints, ep)
		s.Addresses = append(s.Addresses, resolver.Address{Addr: a.Addr, Attributes: recipeID(id(i))})
	}
	return s
}

func (s subject) start(tb testing.TB) *rig {
	tb.Helper()
	r := &rig{channel: &channel{}}
	if s == recorded {
		r.channel.recorder = listed{new(metricstest.Recorder)}
	}
	b := balancer.Get(s.policy)
	if b == nil {
		tb.Fatalf("no policy %q", s.policy)
	}
	if p, ok := b.(balancer.ConfigParser); ok && s.config != "" {
		var err error
		if r.cfg, err = p.ParseConfig(json.RawMessage(s.config)); err != nil {
			tb.Fatal(err)
		}
	}
	r.lb = b.Build(r.channel, balancer.BuildOptions{})
	r.channel.old = r.lb.(interface {
		UpdateSubConnState(balancer.SubConn, balancer.SubConnState)
	}).UpdateSubConnState
	return r
}

func (r *rig) update(tb testing.TB, s resolver.State) {
	if err := r.lb.UpdateClientConnState(balancer.ClientConnState{ResolverState: s, BalancerConfig: r.cfg}); err != nil {
		tb.Fatal(err)
	}
}

// bringUp lists endpoints and connects them, and returns how many are READY.
func (r *rig) bringUp(tb testing.TB, s resolver.State) int {
	r.channel.atOnce = true
	r.update(tb, s)
	r.channel.atOnce = false
	return r.channel.early + r.channel.connect()
}

// ready brings up a policy with all of its n endpoints READY.
func (s subject) ready(tb testing.TB, n int) *rig {
	tb.Helper()
	r := s.start(tb)
	r.state = list(n)
	up := r.bringUp(tb, r.state)
	if s.policy == ringHash.policy { // connects what is picked, and asks for it in a goroutine
		for i := 0; up < n && i < 1000*n; i++ {
			p, _ := r.channel.newest()
			if _, err := p.Pick(balancer.PickInfo{Ctx: keyHeader(fmt.Sprint(i))}); err != balancer.ErrNoSubConnAvailable {
				continue
			}
			for range 100 {
				if now := r.channel.connect(); now > 0 {
					up += now
					break
				}
				time.Sleep(20 * time.Microsecond)
			}
		}
	}
	if up != n {
		tb.Fatalf("%s: %d of %d are READY", s.label, up, n)
	}
	return r
}

// marked is ctx as package affinity's client interceptor hands it on.
func marked(ctx context.Context) (out context.Context) {
	affinity.UnaryClientInterceptor()(ctx, "/bench/Call", nil, nil, unused,
		func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
			out = ctx
			return nil
		})
	return out
}

var unused, _ = grpc.NewClient("passthrough:///unused", grpc.WithTransportCredentials(insecure.NewCredentials()))

func idHeader(id string) context.Context {
	return metadata.AppendToOutgoingContext(context.Background(), affinity.IDHeader, id)
}

func keyHeader(key string) context.Context {
	return metadata.AppendToOutgoingContext(context.Background(), affinity.KeyHeader, key)
}

// deep is ctx as gRPC hands it to a picker: a cancel and values of its own on top.
func deep(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	_ = cancel // it lives as long as the program
	return context.WithValue(ctx, deepKey{}, 1)
}

type deepKey struct{}

// among adds the headers that a call of a real program carries.
func among(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer 0123456789abcdef", "traceparent",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "x-request-id", "8d7f", "x-client-version", "1.2.3")
}
