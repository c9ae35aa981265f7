package otelaffinity_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	experimental "google.golang.org/grpc/experimental/opentelemetry"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/stats/opentelemetry"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/otelaffinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

type game struct {
	testpb.UnimplementedTestServiceServer
	id string
}

func (g game) EmptyCall(context.Context, *testpb.Empty) (*testpb.Empty, error) {
	if g.id == "b" {
		return nil, affinity.Moved("a")
	}
	return &testpb.Empty{}, nil
}

func (g game) UnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	return nil, status.Error(codes.ResourceExhausted, "try again")
}

// dial returns a channel to the servers a and b, with the handler after those of opts.
func dial(t testing.TB, opts ...grpc.DialOption) testpb.TestServiceClient {
	return dialPlain(t, append(opts, grpc.WithStatsHandler(otelaffinity.NewClientHandler()))...)
}

func dialPlain(t testing.TB, opts ...grpc.DialOption) testpb.TestServiceClient {
	listeners := map[string]*bufconn.Listener{}
	// One at a time: bufconn makes timers that fire at once, and two of those in a bubble
	// of synctest crash the race detector (Go 1.26).
	dialing := make(chan struct{}, 1)
	r := manual.NewBuilderWithScheme("test")
	var s resolver.State
	for _, id := range []string{"a", "b"} {
		lis := bufconn.Listen(1 << 16)
		listeners[id] = lis
		srv := grpc.NewServer(affinity.ServerOptions(affinity.WithServerID(id))...)
		testpb.RegisterTestServiceServer(srv, game{id: id})
		go srv.Serve(lis)
		t.Cleanup(srv.Stop)
		s.Endpoints = append(s.Endpoints, endpointsmeta.Set(
			resolver.Endpoint{Addresses: []resolver.Address{{Addr: id}}}, endpointsmeta.Meta{ID: id}))
	}
	r.InitialState(s)
	conn, err := grpc.NewClient("test:///game", slices.Concat(affinity.DialOptions(), []grpc.DialOption{
		grpc.WithResolvers(r),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			dialing <- struct{}{}
			defer func() { <-dialing }()
			return listeners[addr].DialContext(ctx)
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(fmt.Sprintf(`{
			"loadBalancingConfig": [{%q: {}}],
			"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.001s",
				"maxBackoff": "0.001s", "backoffMultiplier": 1, "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]
		}`, stickybalancer.Name)),
	}, opts)...)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return testpb.NewTestServiceClient(conn)
}

// traced is dial with the plugin's tracing.
func traced(t testing.TB) (testpb.TestServiceClient, *tracetest.InMemoryExporter) {
	exporter := tracetest.NewInMemoryExporter()
	return dial(t, opentelemetry.DialOption(opentelemetry.Options{TraceOptions: experimental.TraceOptions{
		TracerProvider:    trace.NewTracerProvider(trace.WithSyncer(exporter)),
		TextMapPropagator: propagation.TraceContext{},
	}})), exporter
}

// noted returns the attributes of ours of each attempt, in order.
func noted(e *tracetest.InMemoryExporter) (all []string) {
	for _, s := range e.GetSpans() {
		set := attribute.NewSet(s.Attributes...)
		id, hasID := set.Value(otelaffinity.ServerIDKey)
		why, _ := set.Value(otelaffinity.ReasonKey)
		if hasID {
			all = append(all, why.AsString()+" "+id.AsString())
		}
	}
	return all
}

func TestTheSpanOfAnAttemptTellsWhereItWentAndWhy(t *testing.T) {
	client, spans := traced(t)
	_, err := client.EmptyCall(affinity.Require(t.Context(), "a"), &testpb.Empty{})
	require.NoError(t, err)
	require.Equal(t, []string{"id a"}, noted(spans))
}

func TestEachRetryHasASpanThatTellsOfIt(t *testing.T) {
	client, spans := traced(t)
	_, err := client.UnaryCall(affinity.With(t.Context(), "b"), &testpb.SimpleRequest{})
	require.Error(t, err)
	require.Equal(t, []string{"id b", "id b", "id b"}, noted(spans))
}

func TestSessionsLearnAsEverWhileTheirCallsAreTraced(t *testing.T) {
	client, spans := traced(t)
	session := affinity.NewSession("")
	for session.ID("test:///game") == "" || len(noted(spans)) < 3 {
		_, err := client.EmptyCall(session.Context(t.Context()), &testpb.Empty{})
		require.NoError(t, err)
	}
	require.Equal(t, "a", session.ID("test:///game"), "b says that the state is on a")
	require.Subset(t, noted(spans), []string{"session a"})
}

func TestACallersSpanIsUsedWhereThereIsNoOther(t *testing.T) {
	exporter := tracetest.NewInMemoryExporter()
	client := dial(t)
	ctx, span := trace.NewTracerProvider(trace.WithSyncer(exporter)).Tracer("test").Start(t.Context(), "move")
	stream, err := client.FullDuplexCall(affinity.With(ctx, "b"))
	require.NoError(t, err)
	_, err = stream.Recv()
	require.Error(t, err) // there is no such method
	span.End()
	require.Equal(t, []string{"id b"}, noted(exporter))
}

func TestACallWithoutASpanIsNotObserved(t *testing.T) {
	ctx := t.Context()
	require.Equal(t, ctx, otelaffinity.NewClientHandler().TagRPC(ctx, nil))
}

// perAttempt makes a span for each attempt, as otelgrpc does.
type perAttempt struct {
	stats.Handler
	tracer oteltrace.Tracer
}

func (p perAttempt) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	ctx, _ = p.tracer.Start(ctx, info.FullMethodName)
	return ctx
}

func (p perAttempt) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, over := s.(*stats.End); over {
		oteltrace.SpanFromContext(ctx).End()
	}
}

func (p perAttempt) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (p perAttempt) HandleConn(context.Context, stats.ConnStats) {}

func recorded(opts ...trace.TracerProviderOption) (oteltrace.Tracer, *tracetest.InMemoryExporter) {
	exporter := tracetest.NewInMemoryExporter()
	return trace.NewTracerProvider(append(opts, trace.WithSyncer(exporter))...).Tracer("test"), exporter
}

func TestTheAttemptsOwnSpanIsUsedRatherThanTheCallers(t *testing.T) {
	tracer, spans := recorded()
	client := dial(t, grpc.WithStatsHandler(perAttempt{tracer: tracer}))
	ctx, caller := tracer.Start(t.Context(), "move")
	_, err := client.EmptyCall(affinity.Require(ctx, "a"), &testpb.Empty{})
	require.NoError(t, err)
	require.Equal(t, []string{"id a"}, noted(spans), "of the attempt")
	caller.End()
	require.Equal(t, []string{"id a"}, noted(spans), "the caller's has nothing")
}

func TestACallThatIsNotSampledIsNotObserved(t *testing.T) {
	tracer, spans := recorded(trace.WithSampler(trace.NeverSample()))
	ctx, _ := tracer.Start(t.Context(), "move")
	require.Equal(t, ctx, otelaffinity.NewClientHandler().TagRPC(ctx, nil))
	client := dial(t, grpc.WithStatsHandler(perAttempt{tracer: tracer}))
	_, err := client.EmptyCall(affinity.Require(ctx, "a"), &testpb.Empty{})
	require.NoError(t, err)
	require.Empty(t, spans.GetSpans())
}

// slow is a connection that is not READY before its gate opens.
type slow struct {
	credentials.TransportCredentials
	gate chan struct{}
}

func (s slow) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	select {
	case <-s.gate:
		return s.TransportCredentials.ClientHandshake(ctx, authority, conn)
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

func (s slow) Clone() credentials.TransportCredentials { return s }

func TestAnAttemptThatWaitedSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tracer, spans := recorded()
		gate := make(chan struct{})
		client := dial(t, grpc.WithStatsHandler(perAttempt{tracer: tracer}),
			grpc.WithTransportCredentials(slow{insecure.NewCredentials(), gate}))
		for i := range 2 {
			done := make(chan error)
			go func() {
				_, err := client.EmptyCall(affinity.Require(t.Context(), "a"), &testpb.Empty{})
				done <- err
			}()
			if synctest.Wait(); i == 0 {
				close(gate)
			}
			require.NoError(t, <-done)
		}
		synctest.Wait()
		var waited []bool
		for _, s := range spans.GetSpans() {
			set := attribute.NewSet(s.Attributes...)
			is, there := set.Value(otelaffinity.WaitedKey)
			waited = append(waited, there && is.AsBool())
		}
		require.Equal(t, []bool{true, false}, waited)
	})
}

func TestCallsMadeAtOnceAreNotMixedUp(t *testing.T) {
	tracer, spans := recorded()
	client := dial(t, grpc.WithStatsHandler(perAttempt{tracer: tracer}))
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			ctx := affinity.With(t.Context(), []string{"a", "b"}[i%2])
			if i%2 == 0 {
				_, _ = client.EmptyCall(ctx, &testpb.Empty{})
				return
			}
			if stream, err := client.FullDuplexCall(ctx); err == nil {
				_, _ = stream.Recv()
			}
		})
	}
	wg.Wait()
	require.Eventually(t, func() bool { return len(spans.GetSpans()) == 100 }, 10*time.Second, time.Millisecond)
	for _, s := range spans.GetSpans() {
		want := "a"
		if strings.HasSuffix(s.Name, "FullDuplexCall") {
			want = "b"
		}
		require.Contains(t, s.Attributes, otelaffinity.ServerIDKey.String(want))
	}
}

// relay makes a call of its own for each that it serves.
type relay struct {
	testpb.UnimplementedTestServiceServer
	next testpb.TestServiceClient
}

func (r relay) EmptyCall(ctx context.Context, m *testpb.Empty) (*testpb.Empty, error) {
	return r.next.EmptyCall(affinity.Require(ctx, "a"), m)
}

func TestAServersSpanIsLeftAlone(t *testing.T) {
	tracer, spans := recorded()
	lis := bufconn.Listen(1 << 16)
	srv := grpc.NewServer(grpc.StatsHandler(perAttempt{tracer: tracer}), grpc.StatsHandler(otelaffinity.NewClientHandler()))
	testpb.RegisterTestServiceServer(srv, relay{next: dialPlain(t)})
	go srv.Serve(lis)
	t.Cleanup(srv.Stop)
	conn, err := grpc.NewClient("passthrough:///relay", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = testpb.NewTestServiceClient(conn).EmptyCall(t.Context(), &testpb.Empty{})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(spans.GetSpans()) == 1 }, 10*time.Second, time.Millisecond)
	require.Empty(t, spans.GetSpans()[0].Attributes)
}
