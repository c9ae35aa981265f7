package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/retry"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/selector"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/timeout"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/stickybalancer"
)

// lines is a log.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Log(_ context.Context, _ logging.Level, msg string, fields ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, fmt.Sprint(msg, fields))
}

func (l *lines) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = nil
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprint(l.all)
}

// keyField is a field of the log: the key that the call carries.
func keyField(ctx context.Context) logging.Fields {
	a, _ := affinity.FromContext(ctx)
	return logging.Fields{"affinity.key", a.Key}
}

// sends is an interceptor of the kind that adds a header to all calls.
func sends(header, value string) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		return invoker(metadata.AppendToOutgoingContext(ctx, header, value), method, req, reply, cc, opts...)
	}
}

func always(context.Context, interceptors.CallMeta) bool { return true }

// chained is a server that does what it is told to.
type chained struct {
	testpb.UnimplementedTestServiceServer
	id    string
	mu    sync.Mutex
	calls int
	do    func(call int) error // nil to succeed
}

func (s *chained) UnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	s.mu.Lock()
	s.calls++
	n, do := s.calls, s.do
	s.mu.Unlock()
	if do != nil {
		if err := do(n); err != nil {
			return nil, err
		}
	}
	return &testpb.SimpleResponse{Hostname: s.id}, nil
}

func (s *chained) StreamingOutputCall(_ *testpb.StreamingOutputCallRequest, stream testpb.TestService_StreamingOutputCallServer) error {
	return stream.Send(&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: []byte(s.id)}})
}

func (s *chained) does(f func(call int) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls, s.do = 0, f
}

func (s *chained) called() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// chains are three servers with these options, and a client with those.
func chains(t *testing.T, serverOpts func(id string) []grpc.ServerOption, clientOpts ...grpc.DialOption) (map[string]*chained, *channel) {
	t.Helper()
	static := manual.NewBuilderWithScheme("static")
	servers := map[string]*chained{}
	var list []resolver.Endpoint
	for _, id := range []string{"a", "b", "c"} {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		servers[id] = &chained{id: id}
		srv := grpc.NewServer(serverOpts(id)...)
		testpb.RegisterTestServiceServer(srv, servers[id])
		go srv.Serve(lis)
		t.Cleanup(srv.Stop)
		ep := resolver.Endpoint{Addresses: []resolver.Address{{Addr: lis.Addr().String()}}}
		list = append(list, endpointsmeta.Set(ep, endpointsmeta.Meta{ID: id}))
	}
	static.InitialState(resolver.State{Endpoints: list})
	conn, err := grpc.NewClient("static:///game", append([]grpc.DialOption{
		grpc.WithResolvers(static),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
	}, clientOpts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return servers, &channel{t: t, conn: conn, rpc: testpb.NewTestServiceClient(conn)}
}

// documentedServer is the order of docs/WORKS-WITH.md, whose code this is.
func documentedServer(id string, logger logging.Logger) []grpc.ServerOption {
	return append(affinity.ServerOptions(affinity.WithServerID(id)), // first: outermost
		grpc.ChainUnaryInterceptor(
			logging.UnaryServerInterceptor(logger, logging.WithFieldsFromContext(keyField)),
			selector.UnaryServerInterceptor(timeoutOnServer, selector.MatchFunc(always)),
			recovery.UnaryServerInterceptor(recovery.WithRecoveryHandler(internal)),
		),
		grpc.ChainStreamInterceptor(
			logging.StreamServerInterceptor(logger, logging.WithFieldsFromContext(keyField)),
			recovery.StreamServerInterceptor(recovery.WithRecoveryHandler(internal)),
		))
}

// documentedClient is the order of docs/WORKS-WITH.md, whose code this is.
func documentedClient(logger logging.Logger) []grpc.DialOption {
	return append([]grpc.DialOption{
		grpc.WithChainUnaryInterceptor(
			logging.UnaryClientInterceptor(logger),
			retry.UnaryClientInterceptor(retry.WithMax(3), retry.WithCodes(codes.Unavailable)),
			timeout.UnaryClientInterceptor(5*time.Second),
		),
		grpc.WithChainStreamInterceptor(
			logging.StreamClientInterceptor(logger),
			retry.StreamClientInterceptor(retry.WithMax(3), retry.WithCodes(codes.Unavailable)),
		),
	}, affinity.DialOptions()...) // last: innermost
}

func internal(p any) error { return status.Errorf(codes.Internal, "panic: %v", p) }

func timeoutOnServer(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return handler(ctx, req)
}

func documented(t *testing.T) (map[string]*chained, *channel, *lines) {
	t.Helper()
	log := new(lines)
	servers, c := chains(t, func(id string) []grpc.ServerOption { return documentedServer(id, log) },
		documentedClient(new(lines))...)
	c.sees("a", "b", "c")
	log.forget()
	return servers, c, log
}

func TestInTheDocumentedOrderARetryGoesToTheSameServer(t *testing.T) {
	servers, c, _ := documented(t)
	session := affinity.NewSession("player-7")
	home, err := c.call(session.Context(bg))
	require.NoError(t, err)
	for name, ctx := range map[string]context.Context{
		"session": session.Context(bg), "id": affinity.Require(bg, home),
	} {
		servers[home].does(func(call int) error {
			if call < 3 {
				return status.Error(codes.Unavailable, "busy")
			}
			return nil
		})
		c.reaches(home, ctx)
		require.Equal(t, 3, servers[home].called(), name)
	}
}

func TestInTheDocumentedOrderMovedIsFollowedUnseenByRetries(t *testing.T) {
	servers, c, _ := documented(t)
	session := affinity.NewSession("player-7")
	home, err := c.call(session.Context(bg))
	require.NoError(t, err)
	other := "a"
	if home == other {
		other = "b"
	}
	servers[home].does(func(int) error { return affinity.Moved(other) })
	c.reaches(other, session.Context(bg))
	require.Equal(t, 1, servers[home].called())
	c.reaches(other, session.Context(bg))
	require.Equal(t, 1, servers[home].called(), "the session has learned it")
}

func TestInTheDocumentedOrderServerInterceptorsSeeTheKey(t *testing.T) {
	_, c, log := documented(t)
	_, err := c.call(affinity.WithKey(bg, "room-7"))
	require.NoError(t, err)
	soon(t, func() bool { return strings.Contains(log.text(), "affinity.key room-7") }, "the call is logged, with its key")
}

func TestInTheDocumentedOrderAPanicIsAnErrorOfASignedServer(t *testing.T) {
	servers, c, _ := documented(t)
	servers["b"].does(func(int) error { panic("bug") })
	var header, trailer metadata.MD
	_, err := c.call(affinity.Require(bg, "b"), grpc.Header(&header), grpc.Trailer(&trailer))
	require.Equal(t, codes.Internal, status.Code(err))
	require.Equal(t, []string{"b"}, append(header.Get(affinity.IDHeader), trailer.Get(affinity.IDHeader)...))
}

func TestInTheDocumentedOrderStreamsReachTheirServer(t *testing.T) {
	_, c, log := documented(t)
	for range 5 {
		stream, err := c.rpc.StreamingOutputCall(affinity.WithKey(affinity.Require(bg, "c"), "room-9"), &testpb.StreamingOutputCallRequest{})
		require.NoError(t, err)
		r, err := stream.Recv()
		require.NoError(t, err)
		require.Equal(t, "c", string(r.GetPayload().GetBody()))
	}
	soon(t, func() bool { return strings.Contains(log.text(), "affinity.key room-9") }, "the stream is logged, with its key")
}

func TestInTheDocumentedOrderAnInterceptorMaySetTheHeader(t *testing.T) {
	_, c := chains(t, func(id string) []grpc.ServerOption { return documentedServer(id, new(lines)) },
		append([]grpc.DialOption{grpc.WithChainUnaryInterceptor(sends(affinity.IDHeader, "b"))}, affinity.DialOptions()...)...)
	for range 6 {
		c.reaches("b", bg)
	}
}

// What goes wrong in another order: the policy takes our interceptor's word that there is
// no header, and a header that is added further in is missed.
func TestAHeaderThatIsSetFurtherInIsMissed(t *testing.T) {
	_, c := chains(t, func(id string) []grpc.ServerOption { return documentedServer(id, new(lines)) },
		append(affinity.DialOptions(), grpc.WithChainUnaryInterceptor(sends(affinity.IDHeader, "b")))...)
	c.sees("a", "b", "c")
}

// And with retries further in: they see Moved, and if they retry its code, they ask the
// wrong server in vain, before ours can follow it.
func TestRetriesFurtherInAskTheServerThatSaidMoved(t *testing.T) {
	servers, c := chains(t, func(id string) []grpc.ServerOption { return documentedServer(id, new(lines)) },
		append(affinity.DialOptions(), grpc.WithChainUnaryInterceptor(
			retry.UnaryClientInterceptor(retry.WithMax(3), retry.WithCodes(codes.FailedPrecondition))))...)
	servers["a"].does(func(int) error { return affinity.Moved("b") })
	c.reaches("b", affinity.With(bg, "a"))
	require.Equal(t, 3, servers["a"].called())
}

func TestServerInterceptorsBeforeOursDoNotSeeTheKey(t *testing.T) {
	log := new(lines)
	_, c := chains(t, func(id string) []grpc.ServerOption {
		return append([]grpc.ServerOption{grpc.ChainUnaryInterceptor(
			logging.UnaryServerInterceptor(log, logging.WithFieldsFromContext(keyField)))},
			affinity.ServerOptions(affinity.WithServerID(id))...)
	}, affinity.DialOptions()...)
	_, err := c.call(affinity.WithKey(bg, "room-7"))
	require.NoError(t, err)
	soon(t, func() bool { return log.text() != "[]" }, "the call is logged")
	require.NotContains(t, log.text(), "room-7")
}
