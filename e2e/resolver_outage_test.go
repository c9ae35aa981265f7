package e2e

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

// Fact 4, the worse half: an etcd that was wiped and has since written as much as
// before shows a revision that has grown, under the same cluster id and term. The
// official watch goes on from its old revision; it never hears of what came before
// that, and what died stays for good.
func TestAWipedEtcdThatHasGrownAgainIsNoticed(t *testing.T) {
	e := startEtcd(t)
	_, c := e.wiped(t, 0)
	direct := e.newClient()
	register(t, direct, startServer(t, "new"))
	for range 100 { // as a busy cluster does before anybody looks
		_, err := direct.Put(bg, "unrelated", "x")
		require.NoError(t, err)
	}
	c.sees("new")
}

// The worst of it: the servers have started again, too, in the order that they had, and on
// other addresses. All that etcd has was written at the revisions that it had before.
func TestAWipedEtcdWithTheSameRevisionsIsNoticed(t *testing.T) {
	e := startEtcd(t)
	starts := func(addr string) (revision int64) {
		cli := e.newClient()
		lease, err := cli.Grant(bg, 60)
		require.NoError(t, err)
		put, err := cli.Put(bg, service+"/a", fmt.Sprintf(`{"Addr":%q}`, addr), clientv3.WithLease(lease.ID))
		require.NoError(t, err)
		return put.Header.Revision
	}
	revision := starts("127.0.0.1:1")
	ctx, cancel := context.WithTimeout(bg, 40*time.Second)
	defer cancel()
	var addr atomic.Value
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	cli := e.newClient()
	watching.Go(func() {
		for list, err := range registry.Watch(ctx, cli, service) {
			if err == nil && len(list) > 0 {
				addr.Store(list[0].Addr)
			}
		}
	})
	soon(t, func() bool { return addr.Load() == "127.0.0.1:1" }, "the first address")
	e.stop()
	e.wipe()
	e.start()
	require.Equal(t, revision, starts("127.0.0.1:2"))
	soon(t, func() bool { return addr.Load() == "127.0.0.1:2" }, "the second address")
}

// An outage of etcd: the official watch waits in silence. Ours says so to whoever
// ranges over it, keeps the sequence going, and yields the list when etcd is back.
func TestWatchSaysThatEtcdIsOutOfReachAndGoesOn(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	ctx, cancel := context.WithTimeout(bg, 40*time.Second)
	defer cancel()
	step := 0
	for list, err := range registry.Watch(ctx, cli, service) {
		switch {
		case step == 0:
			require.NoError(t, err)
			require.Empty(t, list)
			e.stop()
			step++
		case step == 1 && err != nil:
			require.ErrorContains(t, err, "out of reach")
			require.ErrorContains(t, err, e.client.Host)
			require.Nil(t, list)
			e.start()
			register(t, e.newClient(), startServer(t, "a"))
			step++
		case step == 2 && err == nil && len(list) == 1:
			step++
		}
		if step == 3 {
			break
		}
	}
	require.Equal(t, 3, step)
}
