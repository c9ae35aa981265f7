package sim

import (
	"context"
	"encoding/json"
	"net/url"
	"runtime"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"

	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

const (
	service = "game"
	target  = "etcd:///" + service
)

// client is one channel without a network: a policy and a resolver, and in gRPC's place
// what calls them one at a time.
type client struct {
	balancer.ClientConn // what the policy may ask of gRPC, and does not, panics

	world    *world
	etcd     *connection
	lb       balancer.Balancer
	cfg      serviceconfig.LoadBalancingConfig
	resolver resolver.Resolver
	end      context.CancelFunc

	mu      sync.Mutex
	queue   []func()
	more    chan struct{}
	closing chan struct{}
	closed  chan struct{}
	picker  balancer.Picker
	conns   map[string]*conn // by address; who is shut down is not there

	lists   int           // taken in
	longest time.Duration // CPU time of one
}

func newClient(w *world) (*client, error) {
	c := &client{
		world:   w,
		etcd:    &connection{etcd: w.etcd},
		more:    make(chan struct{}, 1),
		closing: make(chan struct{}),
		closed:  make(chan struct{}),
		conns:   make(map[string]*conn),
	}
	b := balancer.Get(stickybalancer.Name)
	js, _ := json.Marshal(w.cfg.Policy)
	cfg, err := b.(balancer.ConfigParser).ParseConfig(js)
	if err != nil {
		return nil, err
	}
	c.cfg = cfg
	u, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	to := resolver.Target{URL: *u}
	c.lb = b.Build(c, balancer.BuildOptions{Target: to})
	ctx, end := context.WithCancel(context.Background())
	c.end = end
	cli := clientv3.NewCtxClient(ctx)
	cli.KV, cli.Watcher = c.etcd, c.etcd
	rb, err := registry.NewBuilder(cli)
	if err != nil {
		return nil, err
	}
	go c.serve()
	c.resolver, err = rb.Build(to, lists{client: c}, resolver.BuildOptions{})
	return c, err
}

// took returns how many lists it has taken in, and the most that one since the last
// question took.
func (c *client) took() (lists int, longest time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	longest, c.longest = c.longest, 0
	return c.lists, longest
}

func (c *client) close() {
	c.resolver.Close()
	c.end()
	c.lb.Close()
	close(c.closing)
	<-c.closed
}

// do makes f run after what came before it.
func (c *client) do(f func()) {
	c.mu.Lock()
	c.queue = append(c.queue, f)
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
}

func (c *client) serve() {
	defer close(c.closed)
	for {
		select {
		case <-c.closing:
			return
		case <-c.more:
		}
		for {
			c.mu.Lock()
			fs := c.queue
			c.queue = nil
			c.mu.Unlock()
			if len(fs) == 0 {
				break
			}
			for _, f := range fs {
				f()
			}
		}
	}
}

// lists is the resolver's way to the policy.
type lists struct {
	resolver.ClientConn
	client *client
}

func (l lists) ReportError(err error) { l.client.do(func() { l.client.lb.ResolverError(err) }) }

func (l lists) UpdateState(s resolver.State) error {
	c := l.client
	done := make(chan error, 1)
	c.do(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		began := threadTime()
		err := c.lb.UpdateClientConnState(balancer.ClientConnState{ResolverState: s, BalancerConfig: c.cfg})
		took := threadTime() - began
		c.mu.Lock()
		c.longest = max(c.longest, took)
		c.lists++
		c.mu.Unlock()
		done <- err
	})
	return <-done
}
