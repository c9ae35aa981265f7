// Command pod is a server in a Kubernetes pod, as docs/kubernetes/README.md explains it:
// that page's code is this. SIGTERM makes it drain and leave.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends, and returns when the server has left in order.
func run(ctx context.Context) error {
	name, ip, port := os.Getenv("POD_NAME"), os.Getenv("POD_IP"), os.Getenv("PORT")
	drain, err := time.ParseDuration(os.Getenv("DRAIN_TIMEOUT"))
	if err != nil {
		return fmt.Errorf("DRAIN_TIMEOUT: %w", err)
	}
	cli, err := clientv3.New(clientv3.Config{
		Endpoints:            strings.Split(os.Getenv("ETCD_ENDPOINTS"), ","),
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
	})
	if err != nil {
		return err
	}
	defer cli.Close()
	lis, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}

	calls := new(registry.Calls)
	srv := grpc.NewServer(append(
		affinity.ServerOptions(affinity.WithServerID(name), affinity.WithDrain(ctx, drain/2)),
		grpc.StatsHandler(calls))...)
	testpb.RegisterTestServiceServer(srv, game{name: name})
	probes := health.NewServer()
	healthpb.RegisterHealthServer(srv, probes)

	return registry.Serve(ctx, cli, "game", srv, lis, endpointsmeta.Meta{ID: name},
		registry.WithAdvertise(net.JoinHostPort(ip, port)),
		registry.WithCalls(calls),
		registry.WithDrainTimeout(drain),
		registry.WithNotify(readiness(probes)))
}

// readiness makes the pod ready once it is registered, and until it drains. That etcd is
// away meanwhile does not make it unready: its clients know it.
func readiness(probes *health.Server) func(registry.State) {
	probes.SetServingStatus("registered", healthpb.HealthCheckResponse_NOT_SERVING)
	return func(s registry.State) {
		switch s {
		case registry.Registered:
			probes.SetServingStatus("registered", healthpb.HealthCheckResponse_SERVING)
		case registry.Draining, registry.Closed:
			probes.SetServingStatus("registered", healthpb.HealthCheckResponse_NOT_SERVING)
		}
	}
}
