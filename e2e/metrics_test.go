package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/internal/metricstest"
	"github.com/homing-grpc/homing/stickybalancer"
)

func TestTheStalenessOfTheListGrowsWhileEtcdIsAway(t *testing.T) {
	e := startEtcd(t)
	register(t, e.newClient(), startServer(t, "a"))
	rec := new(metricstest.Recorder)
	c := newChannel(t, e.newClient(), stickybalancer.Config{}, grpc.WithStatsHandler(rec))
	c.sees("a")
	staleness := func() int64 {
		return rec.Collect()[metricstest.Key("homing.resolver.etcd.list_staleness", "etcd:///game")]
	}
	require.LessOrEqual(t, staleness(), int64(1))
	e.stop()
	soon(t, func() bool { return staleness() >= 2 }, "the list is stale")
	e.start()
	soon(t, func() bool { return staleness() == 0 }, "the list is fresh again")
}

func TestAListingAnewIsCounted(t *testing.T) {
	e := startEtcd(t)
	register(t, e.newClient(), startServer(t, "a"))
	rec := new(metricstest.Recorder)
	c := newChannel(t, e.newClient(), stickybalancer.Config{}, grpc.WithStatsHandler(rec))
	c.sees("a")
	resyncs := func() int64 {
		got := rec.Collect()
		const name = "homing.resolver.etcd.resyncs"
		return got[metricstest.Key(name, "etcd:///game", "data_differs")] + got[metricstest.Key(name, "etcd:///game", "watch_ended")]
	}
	require.Zero(t, resyncs())
	e.stop()
	e.wipe()
	e.start()
	soon(t, func() bool { return resyncs() > 0 }, "resyncs")
}

func TestARegistrationThatIsDeletedIsCountedAsLostAndRegained(t *testing.T) {
	e := startEtcd(t)
	rec := new(metricstest.Recorder)
	cli := e.newClient()
	reg := register(t, cli, startServer(t, "a"), registry.WithMetrics(grpc.WithStatsHandler(rec)))
	require.Empty(t, rec.Collect())
	_, err := cli.Delete(bg, service+"/a")
	require.NoError(t, err)
	within(t, 20*time.Second, func() bool { return rec.Collect()["homing.registry.registrations_regained{game,a}"] == 1 }, "it is put back")
	require.Equal(t, int64(1), rec.Collect()["homing.registry.registrations_lost{game,a}"])
	require.Equal(t, registry.Registered, reg.State())
}
