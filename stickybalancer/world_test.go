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
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/test/bufconn"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/stickybalancer"
)

// world is a channel and its servers in one bubble of fake time. A server's
// name is also its address; its id is what its Meta says.
type world struct {
	t        *testing.T
	resolver *manual.Resolver
	conn     *grpc.ClientConn
	client   testpb.TestServiceClient

	dialing chan struct{} // see dialAlone

	mu      sync.Mutex
	servers map[string]*fakeServer
	dials   map[string]int
}

type fakeServer struct {
	testpb.UnimplementedTestServiceServer
	name  string
	lis   *bufconn.Listener
	grpc  *grpc.Server
	conns []net.Conn
	hold  bool // dials to it hang
}

func (s *fakeServer) UnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	return &testpb.SimpleResponse{Hostname: s.name}, nil
}

// inWorld runs f in a bubble, with a channel of the given config that has not
// been told of any endpoint.
func inWorld(t *testing.T, cfg stickybalancer.Config, f func(t *testing.T, w *world)) {
	t.Helper()
	inWorldWith(t, cfg.ServiceConfig(), f)
}

func inWorldWith(t *testing.T, serviceConfig string, f func(t *testing.T, w *world), opts ...grpc.DialOption) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, servers: map[string]*fakeServer{}, dials: map[string]int{}, dialing: make(chan struct{}, 1)}
		w.resolver = manual.NewBuilderWithScheme("world")
		conn, err := grpc.NewClient("world:///game", append(opts,
			grpc.WithResolvers(w.resolver),
			grpc.WithContextDialer(w.dial),
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultServiceConfig(serviceConfig))...)
		require.NoError(t, err)
		w.conn, w.client = conn, testpb.NewTestServiceClient(conn)
		defer func() {
			conn.Close()
			for name := range w.servers {
				w.stop(name)
			}
			synctest.Wait()
		}()
		conn.Connect()
		synctest.Wait()
		f(t, w)
	})
}

func (w *world) dial(ctx context.Context, addr string) (net.Conn, error) {
	w.mu.Lock()
	w.dials[addr]++
	s := w.servers[addr]
	w.mu.Unlock()
	switch {
	case s == nil:
		return nil, errors.New("connection refused by " + addr)
	case s.hold:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	c, err := dialAlone(ctx, w.dialing, s.lis)
	if err == nil {
		w.mu.Lock()
		s.conns = append(s.conns, c)
		w.mu.Unlock()
	}
	return c, err
}

// dialAlone dials while nobody else in the bubble does. bufconn makes timers that
// fire at once, and two of those on two threads share one context of the race
// detector (bubble.timers.raceCtx, Go 1.26), which crashes it.
func dialAlone(ctx context.Context, dialing chan struct{}, lis *bufconn.Listener) (net.Conn, error) {
	dialing <- struct{}{}
	defer func() { <-dialing }()
	return lis.DialContext(ctx)
}

func (w *world) dialed(addr string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dials[addr]
}

// start starts servers under these names.
func (w *world) start(names ...string) {
	for _, name := range names {
		s := &fakeServer{name: name, lis: bufconn.Listen(1 << 16), grpc: grpc.NewServer()}
		testpb.RegisterTestServiceServer(s.grpc, s)
		w.mu.Lock()
		w.servers[name] = s
		w.mu.Unlock()
		go s.grpc.Serve(s.lis)
	}
	synctest.Wait()
}

// stop kills a server, without a goodbye.
func (w *world) stop(name string) {
	w.mu.Lock()
	s := w.servers[name]
	delete(w.servers, name)
	w.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
	s.grpc.Stop()
	synctest.Wait()
}

// hold makes dials to a server that is not there hang instead of fail.
func (w *world) hold(name string) {
	w.mu.Lock()
	w.servers[name] = &fakeServer{name: name, hold: true, grpc: grpc.NewServer()}
	w.mu.Unlock()
}

// list makes the resolver report these endpoints. "a" is a server with the
// address and id a; "a@x" is one with the id a at the address x; a trailing "!"
// says that it is draining; "a*3" that its weight is 3; "a/z" that it is in zone z;
// "a@x#5" that its incarnation is 5.
func (w *world) list(specs ...string) {
	w.resolver.CC().UpdateState(stateOf(specs...))
	synctest.Wait()
}

func stateOf(specs ...string) resolver.State { return resolver.State{Endpoints: endpoints(specs...)} }

func endpoints(specs ...string) []resolver.Endpoint {
	eps := []resolver.Endpoint{}
	for _, spec := range specs {
		var m endpointsmeta.Meta
		spec, m.Draining = strings.CutSuffix(spec, "!")
		spec, incarnation, _ := strings.Cut(spec, "#")
		fmt.Sscan(incarnation, &m.Incarnation)
		spec, m.Zone, _ = strings.Cut(spec, "/")
		if id, weight, ok := strings.Cut(spec, "*"); ok {
			fmt.Sscan(weight, &m.Weight)
			spec = id
		}
		var addr string
		var ok bool
		if m.ID, addr, ok = strings.Cut(spec, "@"); !ok {
			addr = m.ID
		}
		eps = append(eps, endpointsmeta.Set(resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr}}}, m))
	}
	return eps
}

// call makes one call with a deadline of a minute and returns who answered.
func (w *world) call(ctx context.Context, opts ...grpc.CallOption) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r, err := w.client.UnaryCall(ctx, &testpb.SimpleRequest{}, opts...)
	return r.GetHostname(), err
}

// reaches requires that a call is answered by server without a wait.
func (w *world) reaches(server string, ctx context.Context) {
	w.t.Helper()
	w.reachesAfter(0, server, ctx)
}

// reachesAfter requires that a call is answered by server after that wait.
func (w *world) reachesAfter(wait time.Duration, server string, ctx context.Context) {
	w.t.Helper()
	start := time.Now()
	got, err := w.call(ctx)
	require.NoError(w.t, err)
	require.Equal(w.t, server, got)
	require.Equal(w.t, wait, time.Since(start), "time the call was held")
}

// async starts a call, waits until it can get no further, and returns a func
// that reports how it ended and how long it took.
func (w *world) async(ctx context.Context, opts ...grpc.CallOption) func() (string, time.Duration, error) {
	type result struct {
		server string
		took   time.Duration
		err    error
	}
	done := make(chan result, 1)
	start := time.Now()
	go func() {
		server, err := w.call(ctx, opts...)
		done <- result{server, time.Since(start), err}
	}()
	synctest.Wait()
	return func() (string, time.Duration, error) {
		r := <-done
		return r.server, r.took, r.err
	}
}

// spread makes n calls without affinity and returns how many each server got.
func (w *world) spread(n int) map[string]int {
	w.t.Helper()
	got := map[string]int{}
	for range n {
		server, err := w.call(context.Background())
		require.NoError(w.t, err)
		got[server]++
	}
	return got
}

// up starts and lists these servers, all of which become READY.
func (w *world) up(names ...string) {
	w.start(names...)
	w.list(names...)
}

// listPlain reports endpoints that carry no metadata.
func (w *world) listPlain(addrs ...string) {
	var eps []resolver.Endpoint
	for _, a := range addrs {
		eps = append(eps, resolver.Endpoint{Addresses: []resolver.Address{{Addr: a}}})
	}
	w.resolver.CC().UpdateState(resolver.State{Endpoints: eps})
	synctest.Wait()
}
