package stickybalancer_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	estats "google.golang.org/grpc/experimental/stats"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver/manual"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/metricstest"
	"github.com/homing-grpc/homing/stickybalancer"
)

const lb = "homing.lb.custom_round_robin."

func of(metric string, labels ...string) string {
	return metricstest.Key(lb+metric, append([]string{"world:///game"}, labels...)...)
}

// inMeasuredWorld is inWorld with a recorder.
func inMeasuredWorld(t *testing.T, cfg stickybalancer.Config, f func(t *testing.T, w *world, r *metricstest.Recorder)) {
	t.Helper()
	r := new(metricstest.Recorder)
	inWorldWith(t, cfg.ServiceConfig(), func(t *testing.T, w *world) { f(t, w, r) }, grpc.WithStatsHandler(r))
	require.Zero(t, r.Reporters(), "reports that are still registered")
}

func TestKnownReadyDrainingAndKeptEndpointsAreGauges(t *testing.T) {
	inMeasuredWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world, r *metricstest.Recorder) {
		w.start("a", "b", "c")
		w.list("a", "b", "c", "d")
		require.Equal(t, map[string]int64{
			of("known_endpoints"): 4, of("ready_endpoints"): 3, of("draining_endpoints"): 0, of("kept_endpoints"): 0,
		}, r.Collect())

		w.list("b", "c!")
		require.Equal(t, map[string]int64{
			of("known_endpoints"): 3, of("ready_endpoints"): 3, of("draining_endpoints"): 1, of("kept_endpoints"): 1,
		}, r.Collect(), "a is kept, and d was never there")

		time.Sleep(time.Minute)
		w.stop("b")
		require.Equal(t, map[string]int64{
			of("known_endpoints"): 2, of("ready_endpoints"): 1, of("draining_endpoints"): 1, of("kept_endpoints"): 0,
		}, r.Collect())
	})
}

func TestPicksAreCountedByReasonFromTheFirstOn(t *testing.T) {
	inMeasuredWorld(t, stickybalancer.Config{ReconnectWindow: -1}, func(t *testing.T, w *world, r *metricstest.Recorder) {
		w.up("a", "b")
		ctx := context.Background()
		session := affinity.NewSession("").Context(ctx)
		for _, c := range []context.Context{
			ctx, ctx, ctx, affinity.With(ctx, "a"), affinity.With(ctx, "gone"), affinity.WithKey(ctx, "k"), session, session,
		} {
			_, err := w.call(c)
			require.NoError(t, err)
		}
		_, err := w.call(affinity.Require(ctx, "gone"))
		require.Error(t, err)
		got := r.Collect()
		for reason, n := range map[string]int64{
			affinity.WhyRoundRobin: 4, affinity.WhyID: 1, affinity.WhyRehomed: 1, affinity.WhyHome: 1, affinity.WhySession: 1,
		} {
			require.Equal(t, n, got[of("picks", reason)], reason)
		}
		require.Equal(t, got, r.Collect(), "nothing is recorded twice")
	})
}

func TestSpilledPicksAreCounted(t *testing.T) {
	inMeasuredWorld(t, stickybalancer.Config{MaxLoadFactor: 1.1}, func(t *testing.T, w *world, r *metricstest.Recorder) {
		w.up("a", "b")
		ctx, cancel := context.WithCancel(affinity.WithKey(context.Background(), "k"))
		defer cancel()
		for range 4 { // streams, which stay
			_, err := w.client.FullDuplexCall(ctx)
			require.NoError(t, err)
		}
		got := r.Collect()
		require.Positive(t, got[of("picks", affinity.WhySpilled)])
		require.Equal(t, int64(4), got[of("picks", affinity.WhySpilled)]+got[of("picks", affinity.WhyHome)])
	})
}

func TestTheTimeOfAHeldCallIsRecordedWithWhyItWentOn(t *testing.T) {
	inMeasuredWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world, r *metricstest.Recorder) {
		w.up("a", "b")
		w.stop("a")
		held := w.async(affinity.With(context.Background(), "a"))
		time.Sleep(2 * time.Second)
		w.list("b") // pickers come and go meanwhile
		w.list("a", "b")
		_, took, err := held()
		require.NoError(t, err)
		require.Equal(t, 3*time.Second, took, "until the window ended")
		require.Equal(t, []float64{3}, r.Histo(lb+"queue_duration", "world:///game", affinity.WhyRehomed))
		w.reaches("b", context.Background())
		require.Equal(t, int64(1), r.Collect()[of("picks", affinity.WhyRehomed)])
	})
}

func TestAHeldCallThatEndsIsRecordedAsNeverSent(t *testing.T) {
	inMeasuredWorld(t, stickybalancer.Config{ReconnectWindow: time.Minute}, func(t *testing.T, w *world, r *metricstest.Recorder) {
		w.up("a")
		w.stop("a")
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := w.call(affinity.With(ctx, "a"))
		require.Error(t, err)
		synctest.Wait()
		require.Equal(t, []float64{5}, r.Histo(lb+"queue_duration", "world:///game", "none"))
	})
}

func TestAHeldAttemptEndsWhenItFailsNotWithItsCall(t *testing.T) {
	r := new(metricstest.Recorder)
	inWorldWith(t, `{"loadBalancingConfig": [{"custom_round_robin": {"reconnectWindow": "3s"}}]`+
		`,"methodConfig":[{"name":[{}],"retryPolicy":{"maxAttempts":2,"initialBackoff":"5s","maxBackoff":"5s",`+
		`"backoffMultiplier":1,"retryableStatusCodes":["UNAVAILABLE"]}}]}`, func(t *testing.T, w *world) {
		w.up("a")
		w.stop("a")
		ctx, cancel := context.WithCancel(affinity.Require(context.Background(), "a"))
		opened := make(chan error)
		go func() {
			_, err := w.client.FullDuplexCall(ctx)
			opened <- err
		}()
		time.Sleep(3*time.Second + time.Millisecond)
		w.start("a")
		require.NoError(t, <-opened, "it was tried again")
		time.Sleep(time.Hour)
		cancel()
		synctest.Wait()
		require.Equal(t, []float64{3}, r.Histo(lb+"queue_duration", "world:///game", "none"))
	}, grpc.WithStatsHandler(r))
}

func TestACallThatWaitsOnAfterAFailureIsHeldMeanwhile(t *testing.T) {
	inMeasuredWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world, r *metricstest.Recorder) {
		w.up("a", "b")
		w.stop("a")
		waits := func(ctx context.Context) func() (string, time.Duration, error) {
			return w.async(affinity.Require(ctx, "a"), grpc.WaitForReady(true))
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		short, long := waits(ctx), waits(context.Background())
		time.Sleep(5 * time.Second)
		w.list("a", "b", "c") // another picker
		_, _, err := short()
		require.Error(t, err)
		time.Sleep(time.Second)
		w.list("b")
		w.start("a")
		w.list("a", "b")
		_, took, err := long()
		require.NoError(t, err)
		require.Equal(t, []float64{10}, r.Histo(lb+"queue_duration", "world:///game", "none"))
		require.Equal(t, []float64{took.Seconds()}, r.Histo(lb+"queue_duration", "world:///game", affinity.WhyID))
	})
}

func TestSessionsThatMoveAreCountedByReason(t *testing.T) {
	inMeasuredWorld(t, stickybalancer.Config{ReconnectWindow: -1, AbsentGrace: -1}, func(t *testing.T, w *world, r *metricstest.Recorder) {
		w.start("a", "b", "c")
		w.list("a#1", "b#1", "c#1")
		on := func(server string) context.Context {
			s := affinity.NewSession("")
			for {
				got, err := w.call(s.Context(context.Background()))
				require.NoError(t, err)
				if got == server {
					return s.Context(context.Background())
				}
				s = affinity.NewSession("")
			}
		}
		onA, onB, onC := on("a"), on("b"), on("c")
		w.list("b#2", "c#1") // a is gone, b has restarted
		w.stop("c")
		for _, s := range []context.Context{onA, onA, onB, onB, onC} {
			_, err := w.call(s)
			require.NoError(t, err)
		}
		got := r.Collect()
		require.Equal(t, int64(1), got[of("rehomed_sessions", string(affinity.ReasonGone))])
		require.Equal(t, int64(1), got[of("rehomed_sessions", string(affinity.ReasonRestarted))])
		require.Equal(t, int64(1), got[of("rehomed_sessions", string(affinity.ReasonFailed))])
	})
}

func TestEndpointsOfChannelsWithOneTargetAreSummedUp(t *testing.T) {
	inMeasuredWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world, r *metricstest.Recorder) {
		w.up("a", "b")
		other := manual.NewBuilderWithScheme("world")
		other.InitialState(stateOf("a", "b"))
		conn, err := grpc.NewClient("world:///game",
			grpc.WithResolvers(other), grpc.WithContextDialer(w.dial), grpc.WithStatsHandler(r),
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()))
		require.NoError(t, err)
		conn.Connect()
		synctest.Wait()
		require.Equal(t, int64(4), r.Collect()[of("ready_endpoints")])
		conn.Close()
		synctest.Wait()
		require.Equal(t, int64(2), r.Collect()[of("ready_endpoints")])
	})
}

// gRPC gives each channel a recorder of its own, which does not tell who is behind it.
func TestEachRecorderIsToldOfTheEndpointsOfAllChannelsOfItsTargetThatAreRecorded(t *testing.T) {
	inMeasuredWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world, r *metricstest.Recorder) {
		w.up("a", "b")
		other := manual.NewBuilderWithScheme("world")
		other.InitialState(stateOf("a"))
		own := new(metricstest.Recorder)
		conn, err := grpc.NewClient("world:///game",
			grpc.WithResolvers(other), grpc.WithContextDialer(w.dial), grpc.WithStatsHandler(own),
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()))
		require.NoError(t, err)
		defer conn.Close()
		conn.Connect()
		synctest.Wait()
		require.Equal(t, int64(3), r.Collect()[of("ready_endpoints")])
		require.Equal(t, int64(3), own.Collect()[of("ready_endpoints")])
	})
}

func TestWhatWasCountedIsRecordedWhenTheChannelGoesIdle(t *testing.T) {
	r := new(metricstest.Recorder)
	inWorldWith(t, stickybalancer.Config{}.ServiceConfig(), func(t *testing.T, w *world) {
		w.up("a")
		w.reaches("a", context.Background())
		time.Sleep(2 * time.Minute)
		require.Zero(t, r.Reporters(), "an idle channel has no policy")
		require.Equal(t, map[string]int64{of("picks", affinity.WhyRoundRobin): 1}, r.Collect())

		call := w.async(context.Background())
		w.list("a")
		_, _, err := call()
		require.NoError(t, err)
		require.Equal(t, int64(2), r.Collect()[of("picks", affinity.WhyRoundRobin)])
	}, grpc.WithStatsHandler(r), grpc.WithIdleTimeout(time.Minute))
}

// shyRecorder never asks which metrics a report is for.
type shyRecorder struct{ metricstest.Recorder }

func (r *shyRecorder) RegisterAsyncReporter(a estats.AsyncMetricReporter, _ ...estats.AsyncMetric) func() {
	return r.Recorder.RegisterAsyncReporter(anyReporter{a})
}

type anyReporter struct{ estats.AsyncMetricReporter }

func (a anyReporter) Report(estats.AsyncMetricsRecorder) error {
	return a.AsyncMetricReporter.Report(noGauges{})
}

type noGauges struct{}

func (noGauges) RecordInt64AsyncGauge(*estats.Int64AsyncGaugeHandle, int64, ...string) {}

func TestPicksAreCountedAtTheLatestWhenSomebodyCollects(t *testing.T) {
	r := new(shyRecorder)
	inWorldWith(t, stickybalancer.Config{}.ServiceConfig(), func(t *testing.T, w *world) {
		w.up("a")
		w.reaches("a", context.Background())
		require.Empty(t, r.Collect())
		synctest.Wait()
		w.reaches("a", context.Background())
		require.Equal(t, map[string]int64{of("picks", affinity.WhyRoundRobin): 1}, r.Collect())
	}, grpc.WithStatsHandler(r))
}

// curiousRecorder asks which metrics a report is for whenever it collects.
type curiousRecorder struct{ metricstest.Recorder }

func (r *curiousRecorder) RegisterAsyncReporter(a estats.AsyncMetricReporter, metrics ...estats.AsyncMetric) func() {
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				for _, m := range metrics {
					m.Descriptor()
				}
			}
		}
	}()
	end := r.Recorder.RegisterAsyncReporter(a, metrics...)
	time.Sleep(10 * time.Millisecond)
	return sync.OnceFunc(func() { close(stop); end() })
}

func TestARecorderMayAskForTheMetricsAtAnyTime(t *testing.T) {
	r := new(curiousRecorder)
	inWorldWith(t, stickybalancer.Config{}.ServiceConfig(), func(t *testing.T, w *world) {
		w.up("a")
		w.reaches("a", context.Background())
		require.Equal(t, int64(1), r.Collect()[of("picks", affinity.WhyRoundRobin)])
	}, grpc.WithStatsHandler(r))
}

func TestCollectionsDoNotMeetALockOfThePolicy(t *testing.T) {
	inMeasuredWorld(t, stickybalancer.Config{ReconnectWindow: -1, AbsentGrace: -1}, func(t *testing.T, w *world, r *metricstest.Recorder) {
		w.start("a", "b")
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						r.Collect()
						time.Sleep(time.Millisecond)
					}
				}
			})
		}
		for range 50 {
			conn, err := grpc.NewClient("world:///game", grpc.WithResolvers(w.resolver), grpc.WithContextDialer(w.dial),
				grpc.WithStatsHandler(r), grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()))
			require.NoError(t, err)
			conn.Connect()
			time.Sleep(time.Millisecond)
			w.resolver.CC().UpdateState(stateOf("a", "b!"))
			_, err = testpb.NewTestServiceClient(conn).UnaryCall(context.Background(), &testpb.SimpleRequest{})
			require.NoError(t, err)
			w.resolver.CC().UpdateState(stateOf("b"))
			conn.Close()
		}
		close(stop)
		wg.Wait()
	})
}
