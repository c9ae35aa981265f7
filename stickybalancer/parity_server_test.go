package stickybalancer_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	_ "google.golang.org/grpc/health" // client-side health checking
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// What servers and connections do.

const (
	serving    = healthpb.HealthCheckResponse_SERVING
	notServing = healthpb.HealthCheckResponse_NOT_SERVING
	unknown    = healthpb.HealthCheckResponse_SERVICE_UNKNOWN
)

func TestParityCallsGoOnWithoutAServerThatWentDown(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		r.stop("b")
		r.share("a", "c")
		r.pass(10 * time.Minute)
		r.share("a", "c")
		r.start("b")
		r.pass(5 * time.Minute) // the longest backoff is two minutes
		r.share("a", "b", "c")
		require.Equal(t, 1, r.dialed("a"))
	})
}

func TestParityAServerDownFromTheStartIsLeftOut(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a", "b")
		r.list("dead", "a", "b")
		r.state(connectivity.Ready)
		r.share("a", "b")
	})
}

func TestParityCallsFailAtOnceWhileAllServersAreDown(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		r.stop("a", "b", "c")
		r.state(connectivity.TransientFailure)
		r.refuses("connection refused by")
		r.pass(time.Minute)
		r.refuses("connection refused by")
		waits := r.begin(waitForReady)
		r.queued(waits)
		r.start("a", "b", "c")
		require.NoError(t, (<-waits).err)
		r.pass(5 * time.Minute)
		r.state(connectivity.Ready)
		r.share("a", "b", "c")
	})
}

// pick_first stays in TRANSIENT_FAILURE until it connects (gRFC A62).
func TestParityCallsFailAtOnceDuringALaterAttempt(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.list("a", "b")
		r.refuses("connection refused by")
		r.hang("a", "b")
		for range 6 {
			r.pass(10 * time.Second)
			r.state(connectivity.TransientFailure)
			r.refuses()
		}
		require.Greater(t, r.dialed("a"), 1)
	})
}

func TestParityCallsQueueForTheFirstAttempt(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.hang("slow")
		r.list("dead", "slow")
		r.state(connectivity.Connecting)
		call := r.begin()
		r.queued(call)
		o := <-call
		require.Equal(t, codes.Unavailable, status.Code(o.err))
		require.Equal(t, 20*time.Second, o.took, "gRPC's timeout for a connection")
		r.state(connectivity.TransientFailure)
	})
}

func TestParityCallsQueueWhileTheLastConnectionIsMadeAgain(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		for _, name := range []string{"a", "b"} {
			h := r.host(name)
			r.hang(name)
			r.cut(h)
			defer h.grpc.Stop()
		}
		r.pass(0)
		r.state(connectivity.Connecting)
		call := r.begin()
		r.queued(call)
		o := <-call
		require.Equal(t, codes.Unavailable, status.Code(o.err))
		require.Equal(t, 20*time.Second, o.took)
	})
}

func TestParityALostConnectionIsMadeAgainAtOnce(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.cut(r.host("a"))
		r.pass(0)
		require.Equal(t, 2, r.dialed("a"))
		r.share("a", "b")
	})
}

func TestParityAttemptsBackOff(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a")
		r.list("a", "dead")
		r.pass(10 * time.Minute)
		require.Greater(t, r.dialed("dead"), 5)
		require.Less(t, r.dialed("dead"), 25)
		for range 10 { // nothing of this hurries it
			before := r.dialed("dead")
			r.list("a", "dead")
			r.fail("no names")
			r.share("a")
			require.Equal(t, before, r.dialed("dead"))
		}
	})
}

func TestParityTheBackoffCanBeCutShort(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.list("a", "b")
		r.pass(10 * time.Minute)
		r.start("a", "b")
		r.conn.ResetConnectBackoff()
		r.pass(0)
		r.share("a", "b")
	})
}

func TestParityALossAsksTheResolverAgain(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		asked := func() int {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.resolveNow
		}
		r.up("a", "b")
		before := asked()
		r.stop("a")
		require.Greater(t, asked(), before)
	})
}

func TestParityAServerThatLeavesGracefullyFailsNoCall(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		stop := r.load()
		for _, name := range []string{"a", "b"} {
			r.pass(95 * time.Millisecond)
			r.host(name).grpc.GracefulStop()
		}
		r.pass(time.Second)
		calls, errs := stop()
		require.Empty(t, errs)
		require.Greater(t, calls, 100)
		r.share("c")
	})
}

func TestParityAConnectionThatGrewOldIsReplacedWithoutAFailure(t *testing.T) {
	for _, names := range [][]string{{"a"}, {"a", "b", "c"}} {
		t.Run(names[len(names)-1], func(t *testing.T) {
			parity{serve: []grpc.ServerOption{grpc.KeepaliveParams(keepalive.ServerParameters{
				MaxConnectionAge: time.Second,
			})}}.run(t, func(t *testing.T, r *rig) {
				r.up(names...)
				stop := r.load()
				r.pass(12 * time.Second)
				calls, errs := stop()
				require.Empty(t, errs)
				require.Greater(t, calls, 1000)
				for _, name := range names {
					require.Greater(t, r.dialed(name), 9)
				}
				r.share(names...)
			})
		})
	}
}

func TestParityARemovedServerIsDialedNoMore(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a")
		r.hang("slow")
		r.list("a", "slow", "dead", "dead1,slow1,dead2")
		r.pass(3 * time.Second)
		r.list("a")
		names := []string{"slow", "dead", "dead1", "slow1", "dead2"}
		before := map[string]int{}
		for _, name := range names {
			before[name] = r.dialed(name)
			require.NotZero(t, before[name])
		}
		r.pass(20 * time.Minute)
		for _, name := range names {
			require.Equal(t, before[name], r.dialed(name), name)
		}
		r.share("a")
	})
}

// Endpoints of several addresses.

func TestParityAnEndpointsSecondAddressIsUsedIfTheFirstIsDead(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a", "b")
		r.list("dead,a", "b")
		r.share("a", "b")
	})
}

func TestParityAnEndpointsSecondAddressIsTriedAfterAQuarterSecond(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a")
		r.hang("slow")
		r.list("slow,a")
		o := <-r.begin()
		require.NoError(t, o.err)
		require.Equal(t, "a", o.server)
		require.Equal(t, 250*time.Millisecond, o.took, "happy eyeballs")
	})
}

func TestParityAddressFamiliesAlternate(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		const v6a, v6b, v4 = "[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1"
		r.hang(v6a, v6b)
		r.start(v4)
		r.list(v6a + "," + v6b + "," + v4)
		o := <-r.begin()
		require.NoError(t, o.err)
		require.Equal(t, 250*time.Millisecond, o.took)
		require.Zero(t, r.dialed(v6b))
	})
}

func TestParityAnEndpointOfManyAddressesHasOneShare(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a1", "a2", "a3", "b")
		r.list("a1,a2,a3", "b")
		r.share("a1", "b")
		require.Zero(t, r.dialed("a2"))
	})
}

func TestParityAnEndpointFallsBackToItsNextAddress(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a1", "a2", "b")
		r.list("a1,a2", "b")
		r.share("a1", "b")
		r.stop("a1")
		r.share("a2", "b")
	})
}

func TestParityAnEndpointIsDownWhenAllItsAddressesAre(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.list("x1,x2", "y1,y2")
		r.state(connectivity.TransientFailure)
		r.refuses("connection refused by")
		r.start("y2")
		r.pass(5 * time.Minute)
		r.share("y2")
	})
}

func TestParityReorderedAddressesOfAnEndpointReconnectNothing(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a1", "a2", "b")
		r.list("a1,a2", "b")
		r.share("a1", "b")
		r.list("b", "a2,a1")
		r.share("a1", "b")
		require.Equal(t, 1, r.dialed("a1"))
		require.Zero(t, r.dialed("a2"))
	})
}

func TestParityAnEndpointThatLosesItsAddressUsesItsOther(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a1", "a2", "b")
		r.list("a1,a2", "b")
		r.list("a2", "b")
		r.share("a2", "b")
		require.Zero(t, r.connected("a1"))
	})
}

func TestParityAFailingEndpointStartsAfreshWithANewAddress(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.list("dead1,dead2")
		r.refuses()
		r.hang("slow")
		r.list("dead1,slow")
		r.state(connectivity.Connecting)
		call := r.begin()
		r.queued(call)
		r.start("a")
		r.list("dead1,a")
		o := <-call
		require.NoError(t, o.err)
		require.Equal(t, "a", o.server)
	})
}

func TestParityAnEndpointCanChangeOneOfItsAddresses(t *testing.T) {
	parity{}.run(t, func(t *testing.T, r *rig) {
		r.start("a1", "a2", "b")
		r.list("a1", "b")
		r.list("a1,a2", "b")
		r.share("a1", "b")
		r.stop("a1")
		r.share("a2", "b")
		r.list("a1,a3", "b")
		r.share("b")
		require.Zero(t, r.connected("a2"))
	})
}

// Client-side health checking.

var withHealth = parity{config: `,"healthCheckConfig":{"serviceName":"x"}`}

func TestParityAnUnhealthyServerLeavesTheRotation(t *testing.T) {
	withHealth.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b", "c")
		r.share("a", "b", "c")
		r.setHealth("b", notServing)
		r.share("a", "c")
		r.setHealth("c", unknown)
		r.share("a")
		r.setHealth("b", serving)
		r.setHealth("c", serving)
		r.share("a", "b", "c")
		require.Equal(t, 1, r.dialed("b"), "its connection stays")
	})
}

func TestParityCallsFailWhileAllServersAreUnhealthy(t *testing.T) {
	withHealth.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.setHealth("a", notServing)
		r.setHealth("b", notServing)
		r.state(connectivity.TransientFailure)
		r.refuses("health check failed", "NOT_SERVING")
		waits := r.begin(waitForReady)
		r.queued(waits)
		r.setHealth("b", serving)
		require.NoError(t, (<-waits).err)
		r.state(connectivity.Ready)
		r.share("b")
	})
}

func TestParityAServerUnhealthyFromTheStartGetsNothing(t *testing.T) {
	withHealth.run(t, func(t *testing.T, r *rig) {
		r.start("a", "b")
		r.setHealth("a", notServing)
		r.list("a")
		r.state(connectivity.TransientFailure)
		r.refuses("health check failed")
		r.list("a", "b")
		r.share("b")
		r.setHealth("a", serving)
		r.share("a", "b")
	})
}

func TestParityAnUnhealthyServerThatRestartsIsJudgedAgain(t *testing.T) {
	withHealth.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.setHealth("a", notServing)
		r.stop("a")
		r.share("b")
		r.start("a")
		r.pass(5 * time.Minute)
		r.share("a", "b")
		r.setHealth("a", notServing)
		r.share("b")
	})
}

func TestParityAnUnhealthyServerAndADeadOneFailCalls(t *testing.T) {
	withHealth.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.setHealth("a", notServing)
		r.stop("b")
		r.state(connectivity.TransientFailure)
		r.refuses()
		r.setHealth("a", serving)
		r.share("a")
	})
}

func TestParityAnUnhealthyServerIsKeptByAListThatComesAgain(t *testing.T) {
	withHealth.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.setHealth("a", notServing)
		r.list("b", "a")
		r.share("b")
		r.list("b")
		r.list("a", "b")
		r.share("b")
		r.setHealth("a", serving)
		r.share("a", "b")
	})
}

func TestParityAFailureOfAServerThatLeftIsNotTold(t *testing.T) {
	withHealth.run(t, func(t *testing.T, r *rig) {
		r.start("a")
		r.list("dead", "a")
		r.share("a")
		r.list("a")
		r.setHealth("a", notServing)
		_, err := r.call()
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.NotContains(t, err.Error(), "dead")
	})
}

func TestParityABrokenHealthWatchIsResumed(t *testing.T) {
	withHealth.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.host("a").health.Shutdown() // NOT_SERVING for all
		r.pass(0)
		r.share("b")
		r.host("a").health.Resume()
		r.pass(time.Minute)
		r.share("a", "b")
	})
}

func TestParityAFailingHealthWatchTakesAServerOut(t *testing.T) {
	var broken atomic.Bool
	p := withHealth
	p.serve = []grpc.ServerOption{grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		if broken.Load() {
			return status.Error(codes.Internal, "the watch is broken")
		}
		return h(srv, ss)
	})}
	p.run(t, func(t *testing.T, r *rig) {
		r.start("a")
		broken.Store(true)
		r.list("a")
		r.state(connectivity.TransientFailure)
		r.refuses("the watch is broken")
		broken.Store(false)
		r.pass(5 * time.Minute)
		r.share("a")
		require.Equal(t, 1, r.dialed("a"))
	})
}

func TestParityAServerWithoutHealthServiceIsHealthy(t *testing.T) {
	p := withHealth
	p.serve = []grpc.ServerOption{grpc.StreamInterceptor(func(any, grpc.ServerStream, *grpc.StreamServerInfo, grpc.StreamHandler) error {
		return status.Error(codes.Unimplemented, "no such service")
	})}
	p.run(t, func(t *testing.T, r *rig) {
		r.up("a", "b")
		r.share("a", "b")
	})
}

func TestParityHealthIsIgnoredWhereItIsNotAskedFor(t *testing.T) {
	for _, p := range []struct {
		name string
		parity
	}{
		{"not configured", parity{}},
		{"disabled by the channel", parity{config: withHealth.config, dial: []grpc.DialOption{grpc.WithDisableHealthCheck()}}},
	} {
		t.Run(p.name, func(t *testing.T) {
			p.run(t, func(t *testing.T, r *rig) {
				r.up("a", "b")
				r.setHealth("a", notServing)
				r.share("a", "b")
			})
		})
	}
}
