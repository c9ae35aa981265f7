package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

const shortTTL = time.Second // etcd makes it longer where its elections are slow

func listed(t *testing.T, cli *clientv3.Client) map[string]registry.Instance {
	t.Helper()
	ctx, cancel := context.WithTimeout(bg, 5*time.Second)
	defer cancel()
	list, err := registry.List(ctx, cli, service)
	require.NoError(t, err)
	m := map[string]registry.Instance{}
	for _, i := range list {
		m[i.ID] = i
	}
	return m
}

func TestARegisteredServerIsListedWithWhatItSaysOfItself(t *testing.T) {
	cli := startEtcd(t).newClient()
	m := endpointsmeta.Meta{ID: "a", Weight: 3, Zone: "eu", Labels: map[string]string{"v": "1"}}
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", m)
	require.NoError(t, err)
	defer reg.Close(bg)
	got := listed(t, cli)["a"]
	require.Equal(t, "127.0.0.1:1", got.Addr)
	require.Equal(t, service+"/a", got.Key)
	require.Positive(t, got.Meta.Incarnation)
	got.Meta.Incarnation = 0
	require.Equal(t, m, got.Meta)
	require.Equal(t, registry.Registered, reg.State())
}

func TestTheOfficialManagerReadsOurRecords(t *testing.T) {
	cli := startEtcd(t).newClient()
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.NoError(t, err)
	defer reg.Close(bg)
	m, err := endpoints.NewManager(cli, service)
	require.NoError(t, err)
	list, err := m.List(bg)
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:1", list[service+"/a"].Addr)
}

func TestADrainedServerSaysSoAndAClosedOneIsGoneAtOnce(t *testing.T) {
	cli := startEtcd(t).newClient()
	var states []registry.State
	done := make(chan struct{})
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"},
		registry.WithNotify(func(s registry.State) {
			if states = append(states, s); s == registry.Closed {
				close(done)
			}
		}))
	require.NoError(t, err)
	require.NoError(t, reg.Drain(bg))
	require.True(t, listed(t, cli)["a"].Meta.Draining)
	require.Equal(t, registry.Draining, reg.State())
	require.NoError(t, reg.Close(bg))
	require.Empty(t, listed(t, cli))
	require.NoError(t, reg.Close(bg), "closing again does nothing")
	require.ErrorIs(t, reg.Drain(bg), registry.ErrClosed)
	<-done
	require.Equal(t, []registry.State{registry.Registered, registry.Draining, registry.Closed}, states)
}

func TestUpdateChangesWhatAServerSaysOfItself(t *testing.T) {
	cli := startEtcd(t).newClient()
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.NoError(t, err)
	defer reg.Close(bg)
	require.NoError(t, reg.Update(bg, func(m *endpointsmeta.Meta) { m.Weight = 7 }))
	require.EqualValues(t, 7, listed(t, cli)["a"].Meta.Weight)
	require.ErrorContains(t, reg.Update(bg, func(m *endpointsmeta.Meta) { m.ID = "b" }), "id")
}

func TestTwoLivingServersCannotHoldOneID(t *testing.T) {
	cli := startEtcd(t).newClient()
	a, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(3*time.Second))
	require.NoError(t, err)
	defer a.Close(bg)
	_, err = registry.Register(bg, cli, service, "127.0.0.1:2", endpointsmeta.Meta{ID: "a"})
	require.ErrorIs(t, err, registry.ErrIDTaken)
	require.ErrorContains(t, err, `"a"`)
	require.ErrorContains(t, err, "127.0.0.1:1")
}

func TestTheSameAddressTakesItsIDOverAtOnce(t *testing.T) {
	cli := startEtcd(t).newClient()
	a, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.NoError(t, err)
	defer a.Close(bg)
	b, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.NoError(t, err)
	defer b.Close(bg)
	require.Greater(t, b.Meta().Incarnation, a.Meta().Incarnation)
}

func TestATakeoverWinsAndTheLoserDoesNotTakeItBack(t *testing.T) {
	cli := startEtcd(t).newClient()
	a, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(shortTTL))
	require.NoError(t, err)
	defer a.Close(bg)
	b, err := registry.Register(bg, cli, service, "127.0.0.1:2", endpointsmeta.Meta{ID: "a"}, registry.WithTakeover())
	require.NoError(t, err)
	soon(t, a.Lost, "the loser notices")
	require.Equal(t, "127.0.0.1:2", listed(t, cli)["a"].Addr)
	require.NoError(t, b.Close(bg))
	soon(t, func() bool { return !a.Lost() && listed(t, cli)["a"].Addr == "127.0.0.1:1" }, "it gets the id when that is free")
}

func TestARestartElsewhereWaitsForThePredecessorsLeaseOnly(t *testing.T) {
	cli := startEtcd(t).newClient()
	// A predecessor that died: its lease is not renewed.
	lease, err := cli.Grant(bg, 2)
	require.NoError(t, err)
	_, err = cli.Put(bg, service+"/a", `{"Addr":"127.0.0.1:1","Metadata":{"id":"a","incarnation":1}}`, clientv3.WithLease(lease.ID))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(bg, 15*time.Second)
	defer cancel()
	reg, err := registry.Register(ctx, cli, service, "127.0.0.1:2", endpointsmeta.Meta{ID: "a"})
	require.NoError(t, err)
	defer reg.Close(bg)
	require.Equal(t, "127.0.0.1:2", listed(t, cli)["a"].Addr)
}

// Fact 7: the plain recipe never notices any of these, or never puts the record back.
func TestALostRegistrationComesBack(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, e *etcd, cli *clientv3.Client){
		"key deleted by hand": func(t *testing.T, e *etcd, cli *clientv3.Client) {
			_, err := cli.Delete(bg, service+"/a")
			require.NoError(t, err)
		},
		"key overwritten with garbage": func(t *testing.T, e *etcd, cli *clientv3.Client) {
			_, err := cli.Put(bg, service+"/a", "garbage")
			require.NoError(t, err)
		},
		"key overwritten with an empty address": func(t *testing.T, e *etcd, cli *clientv3.Client) {
			_, err := cli.Put(bg, service+"/a", "{}")
			require.NoError(t, err)
		},
		"lease revoked": func(t *testing.T, e *etcd, cli *clientv3.Client) {
			kv, err := cli.Get(bg, service+"/a")
			require.NoError(t, err)
			_, err = cli.Revoke(bg, clientv3.LeaseID(kv.Kvs[0].Lease))
			require.NoError(t, err)
		},
		"etcd restarted": func(t *testing.T, e *etcd, cli *clientv3.Client) {
			e.stop()
			e.start()
		},
		"etcd wiped": func(t *testing.T, e *etcd, cli *clientv3.Client) {
			e.stop()
			e.wipe()
			e.start()
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := startEtcd(t)
			cli := e.newClient()
			reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(shortTTL))
			require.NoError(t, err)
			defer reg.Close(bg)
			require.NoError(t, reg.Drain(bg))
			lose(t, e, cli)
			soon(t, func() bool {
				ctx, cancel := context.WithTimeout(bg, time.Second)
				defer cancel()
				list, err := registry.List(ctx, cli, service)
				return err == nil && len(list) == 1 && list[0].Addr == "127.0.0.1:1" && list[0].Meta.Draining &&
					list[0].Meta.Incarnation == reg.Meta().Incarnation && reg.State() == registry.Draining
			}, "the record is back, as it was")
		})
	}
}

func TestARegistrationSurvivesAnOutageOfThreeTTLs(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(shortTTL))
	require.NoError(t, err)
	defer reg.Close(bg)
	e.stop()
	soon(t, reg.Lost, "it notices")
	down := time.Now()
	within(t, 5*time.Second, func() bool { return time.Since(down) > 2*shortTTL }, "the outage lasts")
	e.start()
	within(t, 3*time.Second, func() bool { return !reg.Lost() }, "it is back soon after etcd is")
	require.Contains(t, listed(t, cli), "a")
}

func TestCloseEndsWhileEtcdIsDown(t *testing.T) {
	e := startEtcd(t)
	reg, err := registry.Register(bg, e.newClient(), service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.NoError(t, err)
	e.stop()
	ctx, cancel := context.WithTimeout(bg, 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	require.ErrorContains(t, reg.Close(ctx), "stays")
	require.Less(t, time.Since(start), 5*time.Second)
	require.Equal(t, registry.Closed, reg.State())
}

func TestBadArgumentsAreRefusedByName(t *testing.T) {
	cli := startEtcd(t).newClient()
	for _, c := range []struct{ service, addr, id, want string }{
		{"", "127.0.0.1:1", "a", "service"},
		{"game/", "127.0.0.1:1", "a", "service"},
		{"game", "", "a", "addr"},
		{"game", "localhost", "a", "addr"},
		{"game", ":80", "a", "addr"},
		{"game", "0.0.0.0:80", "a", "addr"},
		{"game", "127.0.0.1:0", "a", "addr"},
		{"game", "127.0.0.1:1", "a/b", "id"},
		{"game", "127.0.0.1:1", "ü", "id"},
	} {
		_, err := registry.Register(bg, cli, c.service, c.addr, endpointsmeta.Meta{ID: c.id})
		require.ErrorContains(t, err, c.want, "%+v", c)
	}
	_, err := registry.Register(bg, nil, "game", "127.0.0.1:1", endpointsmeta.Meta{})
	require.ErrorContains(t, err, "cli")
	_, err = registry.NewBuilder(nil)
	require.ErrorContains(t, err, "cli")
	_, err = registry.Register(bg, cli, "game", "127.0.0.1:1", endpointsmeta.Meta{}, registry.WithTTL(time.Millisecond))
	require.ErrorContains(t, err, "TTL")
}

func TestWatchYieldsTheListAndEachChange(t *testing.T) {
	cli := startEtcd(t).newClient()
	ctx, cancel := context.WithTimeout(bg, 20*time.Second)
	defer cancel()
	var reg *registry.Registration
	step := 0
	for list, err := range registry.Watch(ctx, cli, service) {
		require.NoError(t, err)
		switch step {
		case 0:
			require.Empty(t, list)
			reg, err = registry.Register(ctx, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
			require.NoError(t, err)
		case 1:
			require.Len(t, list, 1)
			require.NoError(t, reg.Drain(ctx))
		case 2:
			require.True(t, list[0].Meta.Draining)
			require.NoError(t, reg.Close(ctx))
		case 3:
			require.Empty(t, list)
		}
		if step++; step == 4 {
			break
		}
	}
	require.Equal(t, 4, step)
}
