package faults

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

const (
	channels   = 3
	perChannel = 20 // sessions
	pause      = 4 * time.Millisecond
	target     = "etcd:///" + service // of all channels
)

// channel is one client: a channel of gRPC with an etcd client of its own, and the
// sessions that call over it.
type channel struct {
	cli      *clientv3.Client
	conn     *grpc.ClientConn
	rpc      testpb.TestServiceClient
	sessions []*affinity.Session
	names    map[*affinity.Session]string // as servers note them
	etcd     []*proxy                     // its own way there, behind those of all; nil if it has none
}

// load is the calls that go on while a fault is played.
type load struct {
	world    *World
	channels []*channel
	ctx      context.Context // ends with stop
	stop     context.CancelFunc
	workers  sync.WaitGroup

	calls, failed atomic.Int64
	timeout       atomic.Int64 // of a call, in nanoseconds

	mu     sync.Mutex
	lastOK time.Time
	gap    time.Duration // the longest time without a call that succeeded
	slow   time.Duration // the slowest call that succeeded
	errs   []string      // the first few
	moves  []affinity.Move
	told   map[*affinity.Session]int                 // how often each was told of a move
	homes  map[*affinity.Session]map[string]struct{} // the processes that answered each
}

func (w *World) newChannel() (*channel, error) {
	c := &channel{names: make(map[*affinity.Session]string)}
	var err error
	if c.cli, err = w.ownClient(c); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	b, err := registry.NewBuilder(c.cli)
	if err != nil {
		return nil, err
	}
	if c.conn, err = open(b, stickybalancer.Config{ReconnectWindow: time.Second, AbsentGrace: w.grace}); err != nil {
		return nil, err
	}
	c.rpc = testpb.NewTestServiceClient(c.conn)
	return c, nil
}

// ownClient is a client of etcd for c.
func (w *World) ownClient(c *channel) (*clientv3.Client, error) {
	if !w.cut {
		return w.frontClient()
	}
	var etcd []string
	w.etcd.each(func(m *member) { etcd = append(etcd, m.front.addr) })
	var err error
	if c.etcd, err = newProxies(etcd); err != nil {
		return nil, err
	}
	return connect(addrs(c.etcd), true)
}

// frontClient is a client of etcd that stands behind the clients' proxies.
func (w *World) frontClient() (*clientv3.Client, error) {
	var etcd []string
	w.etcd.each(func(m *member) { etcd = append(etcd, m.front.addr) })
	return connect(etcd, !w.silent)
}

// open makes a channel to the game servers.
func open(b resolver.Builder, cfg stickybalancer.Config) (*grpc.ClientConn, error) {
	return grpc.NewClient(target, append(affinity.DialOptions(),
		grpc.WithResolvers(b),
		grpc.WithDefaultServiceConfig(cfg.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}))...)
}

func (c *channel) close() {
	_ = c.conn.Close()
	_ = c.cli.Close()
	for _, p := range c.etcd {
		p.close()
	}
}

// startLoad makes channels and sessions, and begins to call.
func (w *World) startLoad() (*load, error) {
	l := &load{
		world: w,
		told:  make(map[*affinity.Session]int),
		homes: make(map[*affinity.Session]map[string]struct{}),
	}
	l.timeout.Store(int64(5 * time.Second))
	l.ctx, l.stop = context.WithCancel(context.Background())
	for range channels {
		if err := l.join(); err != nil {
			return l, err
		}
	}
	for _, c := range l.channels {
		for _, s := range c.sessions { // each lives somewhere before anything happens
			if _, err := l.call(l.ctx, c, s); err != nil {
				return l, err
			}
		}
	}
	l.reset()
	for _, c := range l.channels {
		l.work(c)
	}
	return l, nil
}

// join makes a client with sessions.
func (l *load) join() error {
	c, err := l.world.newChannel()
	if err != nil {
		return err
	}
	i := len(l.channels)
	for j := range perChannel {
		key, name := "", fmt.Sprintf("session-%d-%d", i, j)
		if j%2 == 0 {
			if l.world.cut { // another client has the same
				name = fmt.Sprintf("session-%d", j)
			}
			key = name
		}
		s := affinity.NewSession(key)
		s.OnMove(func(m affinity.Move) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.moves = append(l.moves, m)
			l.told[s]++
		})
		l.mu.Lock()
		l.homes[s] = make(map[string]struct{})
		l.mu.Unlock()
		c.sessions = append(c.sessions, s)
		c.names[s] = name
	}
	l.channels = append(l.channels, c)
	return nil
}

// work makes calls of a client until the load is stopped.
func (l *load) work(c *channel) {
	ctx := l.ctx
	l.workers.Go(func() {
		for ctx.Err() == nil {
			l.note(ctx, c, nil)
			time.Sleep(pause)
		}
	})
	// A call that waits for its server must not keep the others from calling.
	for part := range 4 {
		l.workers.Go(func() {
			for i := part; ctx.Err() == nil; i += 4 {
				l.note(ctx, c, c.sessions[i%len(c.sessions)])
				time.Sleep(pause)
			}
		})
	}
}

func (l *load) call(ctx context.Context, c *channel, s *affinity.Session) (*testpb.SimpleResponse, error) {
	req := &testpb.SimpleRequest{}
	if s != nil {
		ctx = s.Context(ctx)
		req.Payload = &testpb.Payload{Body: []byte(c.names[s])}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(l.timeout.Load()))
	defer cancel()
	r, err := c.rpc.UnaryCall(ctx, req)
	if s != nil && err == nil {
		l.mu.Lock()
		if homes := l.homes[s]; homes != nil {
			homes[r.GetUsername()] = struct{}{}
		}
		l.mu.Unlock()
	}
	return r, err
}

// untold returns how many sessions were answered by more processes than they were told
// of: each change of the server, and each restart of it, is a move.
func (l *load) untold() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s, homes := range l.homes {
		if len(homes) > 1+l.told[s] {
			n++
		}
	}
	return n
}

func (l *load) note(ctx context.Context, c *channel, s *affinity.Session) {
	start := time.Now()
	_, err := l.call(ctx, c, s)
	if ctx.Err() != nil {
		return
	}
	l.calls.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if err != nil {
		l.failed.Add(1)
		if len(l.errs) < 3 {
			l.errs = append(l.errs, err.Error())
		}
		return
	}
	l.gap = max(l.gap, now.Sub(l.lastOK))
	l.slow = max(l.slow, now.Sub(start))
	l.lastOK = now
}

func (l *load) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls.Store(0)
	l.failed.Store(0)
	l.lastOK, l.gap, l.slow, l.errs, l.moves = time.Now(), 0, 0, nil, nil
}

// reached reports whether calls without affinity reach exactly these servers from
// every channel.
func (l *load) reached(ids ...string) bool {
	want := make(map[string]bool)
	for _, id := range ids {
		want[id] = true
	}
	for _, c := range l.channels {
		got := make(map[string]bool)
		for range 3 * len(ids) {
			r, err := l.call(context.Background(), c, nil)
			if err != nil {
				return false
			}
			got[r.GetHostname()] = true
		}
		if len(got) != len(want) {
			return false
		}
		for id := range got {
			if !want[id] {
				return false
			}
		}
	}
	return true
}

func (l *load) close() {
	if l.stop != nil {
		l.stop()
	}
	l.workers.Wait()
	for _, c := range l.channels {
		c.close()
	}
}

// stream opens a stream of a session that echoes, and returns it.
func (c *channel) stream(ctx context.Context, s *affinity.Session) (grpc.BidiStreamingClient[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse], error) {
	st, err := c.rpc.FullDuplexCall(s.Context(ctx))
	if err != nil {
		return nil, err
	}
	if err := st.Send(&testpb.StreamingOutputCallRequest{}); err != nil && err != io.EOF {
		return nil, err
	}
	_, err = st.Recv()
	return st, err
}
