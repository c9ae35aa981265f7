package stickybalancer_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// The parity tests run one scenario over gRPC's own round_robin and over
// custom_round_robin, each in a bubble of fake time of its own. So what they
// expect is proven on the rival.

// rival is gRPC's policy, and custom is ours with absentGrace off: what the list
// has lost is lost at once, as under round_robin.
const (
	rival  = `{"round_robin":{}}`
	custom = `{"custom_round_robin":{"absentGrace":"0s"}}`
)

// parity describes a channel.
type parity struct {
	policy string              // the entry of loadBalancingConfig; set by run
	wrap   string              // if set, what stands in its place, with %s for it
	config string              // more fields of the service config, each after a comma
	dial   []grpc.DialOption   // on top of those that the rig needs
	serve  []grpc.ServerOption // of each server
}

// run runs f with a channel under either policy.
func (p parity) run(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	for _, policy := range []struct{ name, js string }{
		{"round_robin", rival},
		{"custom_round_robin", custom},
	} {
		t.Run(policy.name, func(t *testing.T) {
			q := p
			q.policy = policy.js
			q.in(t, f)
		})
	}
}

// in runs f in a bubble with a channel that has not been told of any endpoint.
func (p parity) in(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { p.with(t, synctest.Wait, f) })
}

// with runs f with a channel; settle waits until everything is at rest.
func (p parity) with(t *testing.T, settle func(), f func(t *testing.T, r *rig)) {
	t.Helper()
	r := &rig{
		t:        t,
		policy:   p.policy,
		settle:   settle,
		resolver: manual.NewBuilderWithScheme("parity"),
		serve:    p.serve,
		hosts:    map[string]*host{},
		dials:    map[string]int{},
		tags:     map[string][]any{},
		dialing:  make(chan struct{}, 1),
	}
	r.resolver.ResolveNowCallback = func(resolver.ResolveNowOptions) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.resolveNow++
	}
	conn, err := grpc.NewClient("parity:///service", append([]grpc.DialOption{
		grpc.WithResolvers(r.resolver),
		grpc.WithContextDialer(r.dial),
		grpc.WithTransportCredentials(tagCreds{insecure.NewCredentials(), r}),
		grpc.WithDefaultServiceConfig(p.serviceConfig()),
	}, p.dial...)...)
	require.NoError(t, err)
	r.conn, r.client = conn, testpb.NewTestServiceClient(conn)
	defer func() {
		_ = conn.Close()
		for _, name := range r.names() {
			r.stop(name)
		}
		r.settle()
	}()
	conn.Connect()
	r.settle()
	f(t, r)
}

func (p parity) serviceConfig() string {
	lb := p.policy
	if p.wrap != "" {
		lb = fmt.Sprintf(p.wrap, lb)
	}
	return fmt.Sprintf(`{"loadBalancingConfig":[%s]%s}`, lb, p.config)
}

// rig is a channel, its resolver, and the servers it may meet. A server's name
// is its address.
type rig struct {
	t        *testing.T
	policy   string // its entry of loadBalancingConfig
	settle   func() // waits until everything is at rest
	resolver *manual.Resolver
	conn     *grpc.ClientConn
	client   testpb.TestServiceClient
	serve    []grpc.ServerOption

	dialing chan struct{} // see dialAlone

	mu         sync.Mutex
	hosts      map[string]*host // an address without one refuses connections
	dials      map[string]int
	tags       map[string][]any // what handshakes saw, by address
	resolveNow int
}

type host struct {
	testpb.UnimplementedTestServiceServer
	name   string
	lis    *bufconn.Listener // nil: dials hang
	grpc   *grpc.Server
	health *health.Server

	mu     sync.Mutex
	conns  []*hostConn
	answer func(ctx context.Context) error
	calls  int
}

type hostConn struct {
	net.Conn
	host *host
	once sync.Once
}

func (c *hostConn) Close() error {
	c.once.Do(func() {
		c.host.mu.Lock()
		defer c.host.mu.Unlock()
		for i, d := range c.host.conns {
			if d == c {
				c.host.conns = append(c.host.conns[:i], c.host.conns[i+1:]...)
				break
			}
		}
	})
	return c.Conn.Close()
}

func (h *host) UnaryCall(ctx context.Context, _ *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	h.mu.Lock()
	h.calls++
	answer := h.answer
	h.mu.Unlock()
	if answer != nil {
		if err := answer(ctx); err != nil {
			return nil, err
		}
	}
	return &testpb.SimpleResponse{Hostname: h.name}, nil
}

func (h *host) FullDuplexCall(s grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	for {
		if _, err := s.Recv(); err != nil {
			return nil
		}
		if err := s.Send(&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: []byte(h.name)}}); err != nil {
			return err
		}
	}
}

func (r *rig) dial(ctx context.Context, addr string) (net.Conn, error) {
	r.mu.Lock()
	r.dials[addr]++
	h := r.hosts[addr]
	r.mu.Unlock()
	switch {
	case h == nil:
		return nil, errors.New("connection refused by " + addr)
	case h.lis == nil:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	conn, err := dialAlone(ctx, r.dialing, h.lis)
	if err != nil {
		return nil, err
	}
	c := &hostConn{Conn: conn, host: h}
	h.mu.Lock()
	h.conns = append(h.conns, c)
	h.mu.Unlock()
	return c, nil
}

// start starts servers under these names, instead of what was there.
func (r *rig) start(names ...string) {
	for _, name := range names {
		h := &host{name: name, lis: bufconn.Listen(1 << 16), grpc: grpc.NewServer(r.serve...), health: health.NewServer()}
		h.health.SetServingStatus("x", healthpb.HealthCheckResponse_SERVING)
		testpb.RegisterTestServiceServer(h.grpc, h)
		healthpb.RegisterHealthServer(h.grpc, h.health)
		r.mu.Lock()
		r.hosts[name] = h
		r.mu.Unlock()
		go func() { _ = h.grpc.Serve(h.lis) }()
	}
	r.settle()
}

// stop kills servers without a goodbye. New dials are refused.
func (r *rig) stop(names ...string) {
	for _, name := range names {
		r.mu.Lock()
		h := r.hosts[name]
		delete(r.hosts, name)
		r.mu.Unlock()
		r.cut(h)
		if h.grpc != nil {
			h.grpc.Stop()
		}
	}
	r.settle()
}

// cut breaks the connections to h.
func (r *rig) cut(h *host) {
	h.mu.Lock()
	conns := append([]*hostConn(nil), h.conns...)
	h.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// hang makes dials to these addresses take forever.
func (r *rig) hang(names ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range names {
		r.hosts[name] = &host{name: name}
	}
}

func (r *rig) host(name string) *host {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hosts[name]
}

func (r *rig) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for name := range r.hosts {
		names = append(names, name)
	}
	return names
}

func (r *rig) dialed(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dials[name]
}

// connected returns how many connections to the server are open.
func (r *rig) connected(name string) int {
	h := r.host(name)
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.conns)
}

func (r *rig) answers(name string, f func(context.Context) error) {
	h := r.host(name)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer = f
}

func (r *rig) setHealth(name string, s healthpb.HealthCheckResponse_ServingStatus) {
	r.host(name).health.SetServingStatus("x", s)
	r.settle()
}

// plain makes an endpoint of each spec: its addresses, separated by commas.
func plain(specs ...string) []resolver.Endpoint {
	eps := []resolver.Endpoint{}
	for _, spec := range specs {
		var ep resolver.Endpoint
		for addr := range strings.SplitSeq(spec, ",") {
			ep.Addresses = append(ep.Addresses, resolver.Address{Addr: addr})
		}
		eps = append(eps, ep)
	}
	return eps
}

// list makes the resolver report endpoints of these specs.
func (r *rig) list(specs ...string) { r.update(plain(specs...)) }

func (r *rig) update(eps []resolver.Endpoint) {
	r.resolver.UpdateState(resolver.State{Endpoints: eps})
	r.settle()
}

// fail makes the resolver report an error.
func (r *rig) fail(words string) {
	r.resolver.CC().ReportError(errors.New(words))
	r.settle()
}

// up starts and lists these servers.
func (r *rig) up(names ...string) {
	r.start(names...)
	r.list(names...)
}

func (r *rig) call(opts ...grpc.CallOption) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	resp, err := r.client.UnaryCall(ctx, &testpb.SimpleRequest{}, opts...)
	return resp.GetHostname(), err
}

var waitForReady = grpc.WaitForReady(true)

type outcome struct {
	server string
	err    error
	took   time.Duration
}

// begin starts a call, and returns once it can get no further.
func (r *rig) begin(opts ...grpc.CallOption) <-chan outcome {
	done := make(chan outcome, 1)
	start := time.Now()
	go func() {
		server, err := r.call(opts...)
		done <- outcome{server, err, time.Since(start)}
	}()
	r.settle()
	return done
}

// queued requires that the calls have not ended.
func (r *rig) queued(calls ...<-chan outcome) {
	r.t.Helper()
	for _, c := range calls {
		select {
		case o := <-c:
			require.Fail(r.t, "the call ended", "server %q, error %v", o.server, o.err)
		default:
		}
	}
}

// spread makes n calls, all of which must succeed, and counts who answered.
func (r *rig) spread(n int) map[string]int {
	r.t.Helper()
	got := map[string]int{}
	for range n {
		server, err := r.call()
		require.NoError(r.t, err)
		got[server]++
	}
	return got
}

// share requires that calls go in equal parts to exactly these servers.
func (r *rig) share(names ...string) {
	r.t.Helper()
	want := map[string]int{}
	for _, name := range names {
		want[name] = 10
	}
	require.Equal(r.t, want, r.spread(10*len(names)))
}

// state requires that the channel is in the state.
func (r *rig) state(want connectivity.State) {
	r.t.Helper()
	r.settle()
	require.Equal(r.t, want.String(), r.conn.GetState().String())
}

// refuses requires that a fail-fast call fails at once with Unavailable.
func (r *rig) refuses(words ...string) {
	r.t.Helper()
	start := time.Now()
	_, err := r.call()
	require.Equal(r.t, codes.Unavailable, status.Code(err), "%v", err)
	require.Zero(r.t, time.Since(start), "time until the call failed")
	for _, word := range words {
		require.ErrorContains(r.t, err, word)
	}
}

// pass lets d of fake time go by and everything that it set off come to rest.
func (r *rig) pass(d time.Duration) {
	time.Sleep(d)
	r.settle()
}

// load makes a call every 10ms until stop is called, which returns their errors.
func (r *rig) load(opts ...grpc.CallOption) (stop func() (calls int, errs []error)) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	calls := 0
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(10 * time.Millisecond):
			}
			wg.Go(func() {
				_, err := r.call(opts...)
				mu.Lock()
				defer mu.Unlock()
				calls++
				if err != nil {
					errs = append(errs, err)
				}
			})
		}
	})
	return func() (int, []error) {
		close(done)
		wg.Wait()
		return calls, errs
	}
}

// tagKey is the key of an attribute of an address or an endpoint.
type tagKey struct{}

// tagCreds notes the tag of the address that each handshake is for.
type tagCreds struct {
	credentials.TransportCredentials
	rig *rig
}

func (c tagCreds) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	tag := credentials.ClientHandshakeInfoFromContext(ctx).Attributes.Value(tagKey{})
	if hc, ok := conn.(*hostConn); ok {
		c.rig.mu.Lock()
		c.rig.tags[hc.host.name] = append(c.rig.tags[hc.host.name], tag)
		c.rig.mu.Unlock()
	}
	return c.TransportCredentials.ClientHandshake(ctx, authority, conn)
}

func (c tagCreds) Clone() credentials.TransportCredentials {
	return tagCreds{c.TransportCredentials.Clone(), c.rig}
}

func (r *rig) tagsOf(name string) []any {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]any(nil), r.tags[name]...)
}
