package otelaffinity_test

import (
	"context"
	"fmt"
	"log"
	"net"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	experimental "google.golang.org/grpc/experimental/opentelemetry"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/stats/opentelemetry"
	"google.golang.org/grpc/test/bufconn"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/otelaffinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

// A channel whose spans tell where calls went. What makes the spans comes before it: gRPC's
// plugin here, or grpc.WithStatsHandler(otelgrpc.NewClientHandler()).
func ExampleNewClientHandler() {
	lis := bufconn.Listen(1 << 16) // a network inside this process
	srv := grpc.NewServer()
	testpb.RegisterTestServiceServer(srv, game{id: "a"})
	go srv.Serve(lis)
	defer srv.Stop()

	spans := tracetest.NewInMemoryExporter()
	conn, err := grpc.NewClient("passthrough:///game:7000", append(affinity.DialOptions(),
		opentelemetry.DialOption(opentelemetry.Options{TraceOptions: experimental.TraceOptions{
			TracerProvider:    trace.NewTracerProvider(trace.WithSyncer(spans)),
			TextMapPropagator: propagation.TraceContext{},
		}}),
		grpc.WithStatsHandler(otelaffinity.NewClientHandler()),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	ctx := affinity.WithKey(context.Background(), "room-42")
	if _, err := testpb.NewTestServiceClient(conn).EmptyCall(ctx, &testpb.Empty{}); err != nil {
		log.Fatal(err)
	}
	for _, span := range spans.GetSpans() {
		for _, a := range span.Attributes {
			switch a.Key {
			case otelaffinity.ReasonKey, otelaffinity.ServerIDKey:
				fmt.Println(a.Key, "is", a.Value.AsString())
			}
		}
	}
	// Output:
	// homing.reason is home
	// homing.server_id is game:7000
}
