package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

// revision is that of the last change of the record of "a".
func revision(t *testing.T, cli *clientv3.Client) int64 {
	t.Helper()
	resp, err := cli.Get(bg, service+"/a")
	require.NoError(t, err)
	require.Len(t, resp.Kvs, 1)
	return resp.Kvs[0].ModRevision
}

// Fact 7: nothing registers again with the plain recipe, so it cannot go wrong
// there. Two that do must not put each other out in turns: a server that was
// replaced by its own successor, on the same address, leaves the record to it.
func TestASuccessorOnTheSameAddressIsNotPutOutAgain(t *testing.T) {
	cli := startEtcd(t).newClient()
	old, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(shortTTL))
	require.NoError(t, err)
	defer old.Close(bg)
	successor, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(shortTTL))
	require.NoError(t, err)
	defer successor.Close(bg)

	soon(t, old.Lost, "the old one notices")
	before := revision(t, cli)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		require.Equal(t, before, revision(t, cli), "the record stays as it is")
		require.Equal(t, registry.Registered, successor.State())
	}
	require.Equal(t, successor.Meta().Incarnation, listed(t, cli)["a"].Meta.Incarnation)
}

// What a server says of itself may be asked while it is changed: change runs under
// no lock.
func TestAnUpdateMayLookAtItsRegistration(t *testing.T) {
	cli := startEtcd(t).newClient()
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a", Weight: 2})
	require.NoError(t, err)
	defer reg.Close(bg)
	ctx, cancel := context.WithTimeout(bg, 5*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- reg.Update(ctx, func(m *endpointsmeta.Meta) {
			if reg.State() == registry.Registered {
				m.Weight = 2 * reg.Meta().Weight
			}
		})
	}()
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-ctx.Done():
		t.Fatal("the update is stuck")
	}
	require.EqualValues(t, 4, listed(t, cli)["a"].Meta.Weight)
}

// Every start has a greater incarnation than whatever held the id before, however
// many times the start had to try.
func TestIncarnationsGrowWithEachStart(t *testing.T) {
	cli := startEtcd(t).newClient()
	var last int64
	for i := range 5 {
		reg, err := registry.Register(bg, cli, service, fmt.Sprintf("127.0.0.1:%d", 1+i%2), endpointsmeta.Meta{ID: "a"})
		require.NoError(t, err)
		require.Greater(t, reg.Meta().Incarnation, last)
		last = reg.Meta().Incarnation
		require.NoError(t, reg.Close(bg))
	}
}

// A wiped etcd counts its revisions from 1 again, so a server that starts again may find
// the one that it had found before; it is another start all the same, and its clients
// have to be told that it has lost its memory.
func TestAStartAfterEtcdWasWipedIsAnotherIncarnation(t *testing.T) {
	e := startEtcd(t)
	before := make(map[int64]bool)
	for range 3 {
		reg := register(t, e.newClient(), startServer(t, "a"))
		require.False(t, before[reg.Meta().Incarnation], reg.Meta().Incarnation)
		before[reg.Meta().Incarnation] = true
		e.stop()
		ctx, cancel := context.WithTimeout(bg, 10*time.Millisecond)
		_ = reg.Close(ctx) // it is gone, and cannot say so
		cancel()
		e.wipe()
		e.start()
	}
}
