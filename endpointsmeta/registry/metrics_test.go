package registry

import (
	"net"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	estats "google.golang.org/grpc/experimental/stats"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/internal/logtest"
	"github.com/homing-grpc/homing/internal/metricstest"
)

const staleness = "homing.resolver.etcd.list_staleness"

func target(t *testing.T, s string) resolver.Target {
	u, err := url.Parse(s)
	require.NoError(t, err)
	return resolver.Target{URL: *u}
}

func TestTheStalenessOfAListIsTheTimeSinceEtcdConfirmedIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := new(metricstest.Recorder)
		b := &builder{made: time.Now(), last: make(map[string]goodList)}
		time.Sleep(time.Hour)
		g := b.measure("game", target(t, "etcd:///game"), rec)
		seconds := func() int64 { return rec.Collect()[metricstest.Key(staleness, "etcd:///game")] }
		require.EqualValues(t, 0, seconds())
		time.Sleep(7 * time.Second)
		require.EqualValues(t, 7, seconds(), "there was no answer yet")
		b.confirm("game", g)
		require.EqualValues(t, 0, seconds())
		g.close()
		require.Zero(t, rec.Reporters())
	})
}

func TestAListThatIsTakenUpAgainIsAsStaleAsItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := new(metricstest.Recorder)
		b := &builder{made: time.Now(), last: make(map[string]goodList)}
		g := b.measure("game", target(t, "etcd:///game"), rec)
		b.confirm("game", g)
		b.keepList("game", goodList{confirmed: g.confirmed.Load()})
		g.close()
		time.Sleep(time.Minute)
		g = b.measure("game", target(t, "etcd:///game"), rec)
		require.EqualValues(t, 60, rec.Collect()[metricstest.Key(staleness, "etcd:///game")])
		g.close()
	})
}

func TestOfTwoChannelsOfOneTargetTheStalerOneIsShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := new(metricstest.Recorder)
		b := &builder{made: time.Now(), last: make(map[string]goodList)}
		var gauges []*gauge
		for _, s := range []string{"etcd:///game", "etcd:///game", "etcd:///chat"} {
			gauges = append(gauges, b.measure("game", target(t, s), rec))
		}
		time.Sleep(5 * time.Second)
		b.confirm("game", gauges[1])
		b.confirm("chat", gauges[2])
		require.Equal(t, map[string]int64{
			metricstest.Key(staleness, "etcd:///game"): 5,
			metricstest.Key(staleness, "etcd:///chat"): 0,
		}, rec.Collect())
		for _, g := range gauges {
			g.close()
		}
		require.Empty(t, measured.byTarget)
	})
}

func TestARegistrationCountsWhatItLosesAndRegains(t *testing.T) {
	defer goleak.VerifyNone(t)
	rec := new(metricstest.Recorder)
	r := &Registration{service: "game", id: "game-1", news: make(chan struct{})}
	require.NoError(t, WithMetrics(grpc.WithStatsHandler(rec)).applyRegister(r))
	r.setState(Registered)
	for range 2 {
		r.setState(Lost)
		r.changeState(func(State) State { return Fenced })
		r.setState(Draining)
		r.setState(Draining)
	}
	r.setState(Lost)
	r.setState(Closed)
	require.Equal(t, map[string]int64{
		"homing.registry.registrations_lost{game,game-1}":     3,
		"homing.registry.registrations_regained{game,game-1}": 2,
	}, rec.Collect())
}

func TestChannelsWithBuildersOfTheirOwnShowTheStalerOneToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := new(metricstest.Recorder)
		var gauges []*gauge
		for range 3 {
			b := &builder{made: time.Now(), last: make(map[string]goodList)}
			gauges = append(gauges, b.measure("game", target(t, "etcd:///game"), rec))
			time.Sleep(time.Second)
		}
		for _, i := range []int{0, 2} { // by whichever order they are asked
			gauges[i].builder.confirm("game", gauges[i])
		}
		require.EqualValues(t, 2, rec.Collect()[metricstest.Key(staleness, "etcd:///game")])
		gauges[1].close()
		require.EqualValues(t, 0, rec.Collect()[metricstest.Key(staleness, "etcd:///game")])
		gauges[0].close()
		gauges[2].close()
	})
}

func TestWithMetricsRefusesWhatCannotBeGivenToAChannel(t *testing.T) {
	defer goleak.VerifyNone(t)
	for name, c := range map[string]struct {
		opts []grpc.DialOption
		err  string
	}{
		"no options":   {nil, "registry: WithMetrics must be given a dial option that installs a recorder of metrics, got none"},
		"a nil option": {[]grpc.DialOption{grpc.EmptyDialOption{}, nil}, "registry: WithMetrics: dial option 1 must not be nil"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Register(t.Context(), clientv3.NewCtxClient(t.Context()), "game", "10.0.0.1:1", endpointsmeta.Meta{ID: "game-1"}, WithMetrics(c.opts...))
			require.EqualError(t, err, c.err)

			lis, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			err = Serve(t.Context(), clientv3.NewCtxClient(t.Context()), "game", grpc.NewServer(), lis,
				endpointsmeta.Meta{ID: "game-1"}, WithMetrics(c.opts...))
			require.EqualError(t, err, c.err)
		})
	}
}

func TestWithMetricsTakesTheOptionsOfASecureChannel(t *testing.T) {
	defer goleak.VerifyNone(t)
	rec := new(metricstest.Recorder)
	require.NoError(t, WithMetrics(
		grpc.WithTransportCredentials(credentials.NewTLS(nil)),
		grpc.WithPerRPCCredentials(overTLS{}),
		grpc.WithStatsHandler(rec),
	).applyRegister(&Registration{}))
}

// overTLS is a credential that may not go over a connection that others can read.
type overTLS struct{ credentials.PerRPCCredentials }

func (overTLS) RequireTransportSecurity() bool { return true }

func TestWithMetricsWarnsOfOptionsWithoutARecorder(t *testing.T) {
	warnings := logtest.Warnings(t, "homing-registry")
	require.NoError(t, WithMetrics(grpc.WithStatsHandler(new(metricstest.Recorder))).applyRegister(&Registration{}))
	require.Empty(t, warnings())
	require.NoError(t, WithMetrics(grpc.WithUserAgent("game")).applyRegister(&Registration{}))
	require.Len(t, warnings(), 1)
	require.Contains(t, warnings()[0], "no recorder")
}

// countsOnly is a recorder that has no gauges, and so asks nothing.
type countsOnly struct{ metricstest.Recorder }

func (*countsOnly) RegisterAsyncReporter(estats.AsyncMetricReporter, ...estats.AsyncMetric) func() {
	return func() {}
}

func TestARecorderWithoutGaugesIsTaken(t *testing.T) {
	rec := new(countsOnly)
	r := &Registration{service: "game", id: "game-1", news: make(chan struct{})}
	require.NoError(t, WithMetrics(grpc.WithStatsHandler(rec)).applyRegister(r))
	r.setState(Registered)
	r.setState(Lost)
	require.Equal(t, map[string]int64{"homing.registry.registrations_lost{game,game-1}": 1}, rec.Collect())
}
