package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

func TestServeDrainsAndLeavesWithoutLosingACall(t *testing.T) {
	cli := startEtcd(t).newClient()
	ctx, leave := context.WithCancel(bg)
	ended := make(chan error, 2)
	serve := func(ctx context.Context, id string) {
		calls := new(registry.Calls)
		s := newServer(t, id, grpc.StatsHandler(calls))
		go func() {
			ended <- registry.Serve(ctx, cli, service, s.grpc, s.lis, endpointsmeta.Meta{ID: id},
				registry.WithCalls(calls), registry.WithTTL(2*time.Second))
		}()
	}
	stay, stop := context.WithCancel(bg)
	serve(stay, "a")
	serve(ctx, "b")
	c := newChannel(t, cli, stickybalancer.Config{})
	c.sees("a", "b")

	load, unload := context.WithCancel(bg)
	var wg sync.WaitGroup
	var mu sync.Mutex
	made, failed := 0, []error{}
	for range 4 {
		wg.Go(func() {
			for i := 0; load.Err() == nil; i++ {
				ctx := bg
				if i%2 == 0 {
					ctx = affinity.With(bg, "b")
				}
				_, err := c.call(ctx)
				mu.Lock()
				if made++; err != nil {
					failed = append(failed, err)
				}
				mu.Unlock()
			}
		})
	}
	leave()
	require.NoError(t, <-ended)
	soon(t, func() bool { return len(listed(t, cli)) == 1 }, "the record is gone")
	c.sees("a")
	unload()
	wg.Wait()
	require.Empty(t, failed, "of %d calls", made)
	t.Logf("%d calls, none failed", made)
	stop()
	require.NoError(t, <-ended)
	require.Empty(t, listed(t, cli))
}

func TestServeCutsWhatDoesNotEndInTime(t *testing.T) {
	cli := startEtcd(t).newClient()
	calls := new(registry.Calls)
	s := newServer(t, "a", grpc.StatsHandler(calls))
	ctx, leave := context.WithCancel(bg)
	ended := make(chan error, 1)
	go func() {
		ended <- registry.Serve(ctx, cli, service, s.grpc, s.lis, endpointsmeta.Meta{ID: "a"},
			registry.WithCalls(calls), registry.WithDrainTimeout(time.Second))
	}()
	c := newChannel(t, cli, stickybalancer.Config{})
	stream, err := c.rpc.FullDuplexCall(bg, grpc.WaitForReady(true))
	require.NoError(t, err)
	require.NoError(t, stream.Send(&testpb.StreamingOutputCallRequest{}))
	_, err = stream.Recv()
	require.NoError(t, err)
	start := time.Now()
	leave()
	require.NoError(t, <-ended)
	require.Less(t, time.Since(start), 4*time.Second)
	require.Empty(t, listed(t, cli))
}

func TestServeStaysWhileACallIsUnderWay(t *testing.T) {
	cli := startEtcd(t).newClient()
	calls := new(registry.Calls)
	s := newServer(t, "a", grpc.StatsHandler(calls))
	ctx, leave := context.WithCancel(bg)
	ended := make(chan error, 1)
	states := make(chan registry.State, 10)
	go func() {
		ended <- registry.Serve(ctx, cli, service, s.grpc, s.lis, endpointsmeta.Meta{ID: "a"}, registry.WithCalls(calls),
			registry.WithNotify(func(s registry.State) { states <- s }))
	}()
	require.Equal(t, registry.Registered, <-states)
	c := newChannel(t, cli, stickybalancer.Config{})
	stream, err := c.rpc.FullDuplexCall(bg, grpc.WaitForReady(true))
	require.NoError(t, err)
	leave()
	soon(t, func() bool { return listed(t, cli)["a"].Meta.Draining }, "it drains")
	for range 5 {
		require.NoError(t, stream.Send(&testpb.StreamingOutputCallRequest{}))
		_, err = stream.Recv()
		require.NoError(t, err)
	}
	require.NoError(t, stream.CloseSend())
	require.NoError(t, <-ended)
}

func TestServeRefusesAWildcardWithoutAnAdvertisedAddress(t *testing.T) {
	cli := startEtcd(t).newClient()
	s := newServer(t, "a")
	err := registry.Serve(bg, cli, service, s.grpc, s.lis, endpointsmeta.Meta{ID: "a"}, registry.WithAdvertise("0.0.0.0:1"))
	require.ErrorContains(t, err, "0.0.0.0:1")
}

// A client that checks health has a stream open for as long as it is connected.
func TestServeDoesNotWaitForHealthChecks(t *testing.T) {
	cli := startEtcd(t).newClient()
	calls := new(registry.Calls)
	s := newServer(t, "a", grpc.StatsHandler(calls))
	healthpb.RegisterHealthServer(s.grpc, health.NewServer())
	ctx, leave := context.WithCancel(bg)
	ended := make(chan error, 1)
	go func() {
		ended <- registry.Serve(ctx, cli, service, s.grpc, s.lis, endpointsmeta.Meta{ID: "a"}, registry.WithCalls(calls))
	}()
	policy, err := stickybalancer.Config{}.MarshalJSON()
	require.NoError(t, err)
	c := newChannel(t, cli, stickybalancer.Config{}, grpc.WithDefaultServiceConfig(fmt.Sprintf(
		`{"loadBalancingConfig":[{%q:%s}],"healthCheckConfig":{"serviceName":""}}`, stickybalancer.Name, policy)))
	c.sees("a")
	require.Zero(t, calls.UnderWay())
	start := time.Now()
	leave()
	require.NoError(t, <-ended)
	require.Less(t, time.Since(start), 5*time.Second)
}
