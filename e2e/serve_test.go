package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	official "go.etcd.io/etcd/client/v3/naming/resolver"
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

// Whoever stays with a server that drains, or does not know that it does, calls on. The
// server is never without a call, and loses none all the same.
func TestServeLosesNoCallOfAServerThatIsNeverWithoutOne(t *testing.T) {
	const drainTimeout = 4 * time.Second
	for _, who := range []struct {
		name string
		dial func(*testing.T, *clientv3.Client) *channel
		ctx  func() context.Context
	}{
		{"sessions", newDefaultChannel, func() context.Context { return affinity.NewSession("").Context(bg) }},
		{"calls by id", newDefaultChannel, func() context.Context { return affinity.With(bg, "b") }},
		{"clients of other code", newOfficialChannel, func() context.Context { return bg }},
	} {
		t.Run(who.name, func(t *testing.T) {
			cli := startEtcd(t).newClient()
			ctx, leave := context.WithCancel(bg)
			defer leave()
			ended := make(chan error, 2)
			for _, id := range []string{"a", "b"} {
				calls := new(registry.Calls)
				s := newServer(t, id, grpc.StatsHandler(calls), grpc.ChainUnaryInterceptor(answerWhenTheNextHasCome()))
				ctx := ctx
				if id == "a" {
					ctx = t.Context()
				}
				go func() {
					ended <- registry.Serve(ctx, cli, service, s.grpc, s.lis, endpointsmeta.Meta{ID: id},
						registry.WithCalls(calls), registry.WithDrainTimeout(drainTimeout))
				}()
			}
			c := who.dial(t, cli)
			c.sees("a", "b")

			load, unload := context.WithCancel(bg)
			var wg sync.WaitGroup
			for range 16 {
				ctx := who.ctx()
				wg.Go(func() {
					for load.Err() == nil {
						if _, err := c.call(ctx); err != nil {
							t.Errorf("lost: %v", err)
						}
					}
				})
			}
			start := time.Now()
			leave()
			require.NoError(t, <-ended)
			took := time.Since(start)
			c.sees("a")
			unload()
			wg.Wait()
			require.Greater(t, took, drainTimeout/2, "it was not without a call")
			require.Less(t, took, drainTimeout+2*time.Second)
		})
	}
}

// answerWhenTheNextHasCome makes calls wait for each other, but not for long.
func answerWhenTheNextHasCome() grpc.UnaryServerInterceptor {
	var mu sync.Mutex
	var last chan struct{}
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		mine := make(chan struct{})
		mu.Lock()
		if last != nil {
			close(last)
		}
		last = mine
		mu.Unlock()
		select {
		case <-mine:
		case <-time.After(100 * time.Millisecond):
		}
		return handler(ctx, req)
	}
}

func newDefaultChannel(t *testing.T, cli *clientv3.Client) *channel {
	t.Helper()
	return newChannel(t, cli, stickybalancer.Config{})
}

// newOfficialChannel is a client on etcd's own resolver and round_robin.
func newOfficialChannel(t *testing.T, cli *clientv3.Client) *channel {
	t.Helper()
	b, err := official.NewBuilder(cli)
	require.NoError(t, err)
	return newChannelWith(t, b, stickybalancer.Config{}, grpc.WithDefaultServiceConfig(
		`{"loadBalancingConfig":[{"round_robin":{}}]}`))
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
