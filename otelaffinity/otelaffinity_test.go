package otelaffinity_test

import (
	"context"
	"fmt"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	experimental "google.golang.org/grpc/experimental/opentelemetry"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
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

// dial returns a channel to the servers a and b.
func dial(t testing.TB, opts ...grpc.DialOption) testpb.TestServiceClient {
	listeners := map[string]*bufconn.Listener{}
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
	conn, err := grpc.NewClient("test:///game", append(append(affinity.DialOptions(), opts...),
		grpc.WithStatsHandler(otelaffinity.NewClientHandler()),
		grpc.WithResolvers(r),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return listeners[addr].DialContext(ctx)
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(fmt.Sprintf(`{
			"loadBalancingConfig": [{%q: {}}],
			"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.001s",
				"maxBackoff": "0.001s", "backoffMultiplier": 1, "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}}]
		}`, stickybalancer.Name)))...)
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
