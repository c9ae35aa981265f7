package otelaffinity_test

import (
	"log"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/otelaffinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

// A channel whose spans tell where calls went. The handler that makes the spans comes
// before it.
func ExampleNewClientHandler() {
	conn, err := grpc.NewClient("dns:///game:7000", append(affinity.DialOptions(),
		// grpc.WithStatsHandler(otelgrpc.NewClientHandler()),
		grpc.WithStatsHandler(otelaffinity.NewClientHandler()),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
}
