package affinity_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unique"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/test/bufconn"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/stickybalancer"
)

var bg = context.Background()

// worldTarget is the canonical target of a world's channel.
const worldTarget = "world:///game"

// world is a channel of the whole module and its servers, in one bubble of fake time.
type world struct {
	t        *testing.T
	resolver *manual.Resolver
	conn     *grpc.ClientConn
	client   testpb.TestServiceClient
	dialing  chan struct{} // holds the one that dials, see dial

	mu    sync.Mutex
	games map[string]*game // by address, which is "at-" and the name
}

// game is a server. The nil functions answer with one message.
type game struct {
	testpb.UnimplementedTestServiceServer
	name   string
	lis    *bufconn.Listener
	server *grpc.Server

	mu     sync.Mutex
	unary  func(ctx context.Context, req *testpb.SimpleRequest) error
	stream func(ss grpc.ServerStream) error
	calls  int
}

func (g *game) UnaryCall(ctx context.Context, req *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	g.mu.Lock()
	g.calls++
	f := g.unary
	g.mu.Unlock()
	if f != nil {
		if err := f(ctx, req); err != nil {
			return nil, err
		}
	}
	return &testpb.SimpleResponse{Hostname: g.name}, nil
}

func (g *game) FullDuplexCall(ss grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	return g.serve(ss)
}

func (g *game) StreamingOutputCall(req *testpb.StreamingOutputCallRequest, ss grpc.ServerStreamingServer[testpb.StreamingOutputCallResponse]) error {
	return g.serve(ss)
}

func (g *game) StreamingInputCall(ss grpc.ClientStreamingServer[testpb.StreamingInputCallRequest, testpb.StreamingInputCallResponse]) error {
	return g.serve(ss)
}

func (g *game) serve(ss grpc.ServerStream) error {
	g.mu.Lock()
	f := g.stream
	g.calls++
	g.mu.Unlock()
	if f != nil {
		return f(ss)
	}
	return ss.SendMsg(said(g.name))
}

// onUnary makes f answer unary calls from now on.
func (g *game) onUnary(f func(ctx context.Context, req *testpb.SimpleRequest) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unary = f
}

// onStream makes f serve streams from now on.
func (g *game) onStream(f func(ss grpc.ServerStream) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stream = f
}

// served returns how many handlers have run.
func (g *game) served() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.calls
}

// fails makes every handler fail with err; nil ends that.
func (g *game) fails(err error) {
	if err == nil {
		g.onUnary(nil)
		g.onStream(nil)
		return
	}
	g.onUnary(func(context.Context, *testpb.SimpleRequest) error { return err })
	g.onStream(func(grpc.ServerStream) error { return err })
}

// said is a message of a stream that says s.
func said(s string) *testpb.StreamingOutputCallResponse {
	return &testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: []byte(s)}}
}

// echo is a handler that answers each message with one that says name, until the
// client has closed its side.
func echo(name string) func(ss grpc.ServerStream) error {
	return func(ss grpc.ServerStream) error {
		for {
			if err := ss.RecvMsg(new(testpb.StreamingOutputCallRequest)); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			if err := ss.SendMsg(said(name)); err != nil {
				return err
			}
		}
	}
}

// inWorld runs f in a bubble with a channel to a, b and c, which are READY and not
// signed.
func inWorld(t *testing.T, f func(t *testing.T, w *world), opts ...affinity.ClientOption) {
	t.Helper()
	inEmptyWorld(t, func(t *testing.T, w *world) {
		for _, name := range []string{"a", "b", "c"} {
			w.start(name)
		}
		w.list("a", "b", "c")
		f(t, w)
	}, stickybalancer.Config{}.ServiceConfig(), opts...)
}

// inEmptyWorld is inWorld without servers.
func inEmptyWorld(t *testing.T, f func(t *testing.T, w *world), serviceConfig string, opts ...affinity.ClientOption) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, games: map[string]*game{}, dialing: make(chan struct{}, 1), resolver: manual.NewBuilderWithScheme("world")}
		w.conn = w.dialTo(worldTarget, append(affinity.DialOptions(opts...),
			grpc.WithResolvers(w.resolver), grpc.WithDefaultServiceConfig(serviceConfig))...)
		w.client = testpb.NewTestServiceClient(w.conn)
		defer func() {
			_ = w.conn.Close()
			for _, g := range w.games {
				g.server.Stop()
			}
			synctest.Wait()
		}()
		w.conn.Connect()
		synctest.Wait()
		f(t, w)
	})
}

func (w *world) dialTo(target string, opts ...grpc.DialOption) *grpc.ClientConn {
	conn, err := grpc.NewClient(target, append(opts, grpc.WithContextDialer(w.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(w.t, err)
	return conn
}

// dial dials while nobody else in the bubble does. bufconn makes timers that fire at
// once, and two of those on two threads crash Go's race detector.
func (w *world) dial(ctx context.Context, addr string) (net.Conn, error) {
	w.mu.Lock()
	g := w.games[addr]
	w.mu.Unlock()
	if g == nil {
		return nil, errors.New("connection refused by " + addr)
	}
	w.dialing <- struct{}{}
	defer func() { <-w.dialing }()
	return g.lis.DialContext(ctx)
}

// start starts a server.
func (w *world) start(name string, opts ...affinity.ServerOption) *game {
	g := &game{name: name, lis: bufconn.Listen(1 << 16), server: grpc.NewServer(affinity.ServerOptions(opts...)...)}
	testpb.RegisterTestServiceServer(g.server, g)
	w.mu.Lock()
	w.games["at-"+name] = g
	w.mu.Unlock()
	go func() { _ = g.server.Serve(g.lis) }()
	synctest.Wait()
	return g
}

func (w *world) game(name string) *game {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.games["at-"+name]
}

// stop kills a server.
func (w *world) stop(name string) {
	w.mu.Lock()
	g := w.games["at-"+name]
	delete(w.games, "at-"+name)
	w.mu.Unlock()
	g.server.Stop()
	synctest.Wait()
}

// list makes the resolver report these servers, by their ids.
func (w *world) list(names ...string) {
	var eps []resolver.Endpoint
	for _, name := range names {
		ep := resolver.Endpoint{Addresses: []resolver.Address{{Addr: "at-" + name}}}
		eps = append(eps, endpointsmeta.Set(ep, endpointsmeta.Meta{ID: name}))
	}
	w.resolver.CC().UpdateState(resolver.State{Endpoints: eps})
	synctest.Wait()
}

// drain makes the resolver report that the first of these servers drains.
func (w *world) drain(names ...string) {
	var eps []resolver.Endpoint
	for n, name := range names {
		ep := resolver.Endpoint{Addresses: []resolver.Address{{Addr: "at-" + name}}}
		eps = append(eps, endpointsmeta.Set(ep, endpointsmeta.Meta{ID: name, Draining: n == 0}))
	}
	w.resolver.CC().UpdateState(resolver.State{Endpoints: eps})
	synctest.Wait()
}

// listPlain reports them without metadata.
func (w *world) listPlain(names ...string) {
	var eps []resolver.Endpoint
	for _, name := range names {
		eps = append(eps, resolver.Endpoint{Addresses: []resolver.Address{{Addr: "at-" + name}}})
	}
	w.resolver.CC().UpdateState(resolver.State{Endpoints: eps})
	synctest.Wait()
}

// call makes one call with a deadline of a minute and returns who answered.
func (w *world) call(ctx context.Context, opts ...grpc.CallOption) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r, err := w.client.UnaryCall(ctx, &testpb.SimpleRequest{}, opts...)
	return r.GetHostname(), err
}

// reaches requires that a call is answered by that server.
func (w *world) reaches(server string, ctx context.Context) {
	w.t.Helper()
	got, err := w.call(ctx)
	require.NoError(w.t, err)
	require.Equal(w.t, server, got)
}

// keyAt returns a key whose home is server.
func (w *world) keyAt(server string) string {
	w.t.Helper()
	for i := range 1000 {
		var r affinity.Route
		key := fmt.Sprint("key-", i)
		if _, err := w.call(affinity.Observe(affinity.WithKey(bg, key), &r)); err == nil && r.ID() == server {
			return key
		}
	}
	w.t.Fatalf("no key is at home on %s", server)
	return ""
}

// sessionAt returns a session that lives on server, and its moves.
func (w *world) sessionAt(server string) (*affinity.Session, *moves) {
	w.t.Helper()
	s := affinity.NewSession(w.keyAt(server))
	m := watchMoves(s)
	_, err := w.call(s.Context(bg))
	require.NoError(w.t, err)
	require.Equal(w.t, server, s.ID(worldTarget))
	return s, m
}

// open opens a bidirectional stream that ends with the test at the latest.
func (w *world) open(ctx context.Context) testpb.TestService_FullDuplexCallClient {
	w.t.Helper()
	ss, err := w.client.FullDuplexCall(ctx)
	require.NoError(w.t, err)
	return ss
}

// says requires that a message is answered by that server.
func (w *world) says(server string, ss testpb.TestService_FullDuplexCallClient) {
	w.t.Helper()
	require.NoError(w.t, ss.Send(&testpb.StreamingOutputCallRequest{}))
	m, err := ss.Recv()
	require.NoError(w.t, err)
	require.Equal(w.t, server, string(m.GetPayload().GetBody()))
}

// moves are those that a session was told of.
type moves struct {
	mu   sync.Mutex
	list []affinity.Move
}

func watchMoves(s *affinity.Session) *moves {
	m := &moves{}
	s.OnMove(func(move affinity.Move) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.list = append(m.list, move)
	})
	return m
}

// are requires that these were the moves, as "from to reason".
func (m *moves) are(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	got := []string{}
	for _, move := range m.list {
		got = append(got, fmt.Sprint(move.From, " ", move.To, " ", move.Reason))
	}
	require.Equal(t, append([]string{}, want...), got)
}

// openStreams returns how many streams the session has noted.
func openStreams(s *affinity.Session) int {
	b := callctx.From(s.Context(bg)).Session.Find(unique.Make(worldTarget))
	return reflect.ValueOf(b).Elem().FieldByName("streams").Len()
}
