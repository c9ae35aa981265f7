package e2e

// gRPC registers its outlier detection only with all of xDS, hence the dependency
// here and not in the root module.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	_ "google.golang.org/grpc/xds" // registers outlier_detection_experimental

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

type outlierServer struct {
	testpb.UnimplementedTestServiceServer
	name string
	sick atomic.Bool
}

func (s *outlierServer) UnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if s.sick.Load() {
		return nil, status.Error(codes.Internal, "sick")
	}
	return &testpb.SimpleResponse{Hostname: s.name}, nil
}

// TestOutlierDetectionTakesAFailingServerOut runs on gRPC's own policy, too, so
// that what it expects is proven there.
func TestOutlierDetectionTakesAFailingServerOut(t *testing.T) {
	const config = `{"loadBalancingConfig":[{"outlier_detection_experimental":{
		"interval":"1s","baseEjectionTime":"30s","maxEjectionTime":"30s","maxEjectionPercent":50,
		"failurePercentageEjection":{"threshold":50,"enforcementPercentage":100,"minimumHosts":2,"requestVolume":5},
		"childPolicy":[{%q:{}}]}}]}`
	for _, policy := range []string{"round_robin", "custom_round_robin"} {
		t.Run(policy, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				servers := map[string]*outlierServer{}
				listeners := map[string]*bufconn.Listener{}
				// One dial at a time: bufconn's timers, which fire at once, crash Go
				// 1.26's race detector when two do in one bubble.
				dialing := make(chan struct{}, 1)
				var endpoints []resolver.Endpoint
				for _, name := range []string{"a", "b", "c"} {
					servers[name] = &outlierServer{name: name}
					lis := bufconn.Listen(1 << 16)
					listeners[name] = lis
					s := grpc.NewServer()
					testpb.RegisterTestServiceServer(s, servers[name])
					go func() { _ = s.Serve(lis) }()
					defer s.Stop()
					endpoints = append(endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: name}}})
				}
				r := manual.NewBuilderWithScheme("outlier")
				r.InitialState(resolver.State{Endpoints: endpoints})
				conn, err := grpc.NewClient("outlier:///", grpc.WithResolvers(r),
					grpc.WithTransportCredentials(insecure.NewCredentials()),
					grpc.WithDefaultServiceConfig(fmt.Sprintf(config, policy)),
					grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
						if lis := listeners[addr]; lis != nil {
							dialing <- struct{}{}
							defer func() { <-dialing }()
							return lis.DialContext(ctx)
						}
						return nil, errors.New("refused")
					}))
				require.NoError(t, err)
				defer conn.Close()
				client := testpb.NewTestServiceClient(conn)
				round := func() map[string]int {
					got := map[string]int{}
					for range 60 {
						resp, err := client.UnaryCall(t.Context(), &testpb.SimpleRequest{})
						if err != nil {
							require.Equal(t, codes.Internal, status.Code(err), "%v", err)
							got["failed"]++
							continue
						}
						got[resp.GetHostname()]++
					}
					return got
				}
				pass := func(d time.Duration) {
					time.Sleep(d)
					synctest.Wait()
				}
				conn.Connect()
				synctest.Wait()
				require.Equal(t, map[string]int{"a": 20, "b": 20, "c": 20}, round())
				pass(1100 * time.Millisecond)

				servers["b"].sick.Store(true)
				require.Equal(t, map[string]int{"a": 20, "failed": 20, "c": 20}, round())
				pass(2 * time.Second)
				require.Equal(t, map[string]int{"a": 30, "c": 30}, round(), "ejected")
				if policy == stickybalancer.Name {
					_, err := client.UnaryCall(affinity.Require(t.Context(), "b"), &testpb.SimpleRequest{})
					require.Equal(t, codes.Internal, status.Code(err), "what belongs to it still goes there")
				}

				servers["b"].sick.Store(false)
				pass(20 * time.Second)
				require.Equal(t, map[string]int{"a": 30, "c": 30}, round(), "still ejected")
				pass(15 * time.Second)
				require.Equal(t, map[string]int{"a": 20, "b": 20, "c": 20}, round(), "back")
			})
		})
	}
}
