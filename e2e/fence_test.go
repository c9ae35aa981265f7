package e2e

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

// fenced is a registration with a fence, whose way to etcd goes through a proxy.
type fenced struct {
	fence  *registry.Fence
	reg    *registry.Registration
	direct *clientv3.Client
	etcd   *proxy

	mu     sync.Mutex
	states []registry.State
}

func registerFenced(t *testing.T, keep time.Duration) *fenced {
	t.Helper()
	e := startEtcd(t)
	f := &fenced{fence: registry.NewFence(keep), direct: e.newClient(), etcd: newProxy(t, e.client.Host)}
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: []string{f.etcd.lis.Addr().String()}, Logger: zap.NewNop(),
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: time.Second,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, MaxDelay: 500 * time.Millisecond},
		})},
	})
	require.NoError(t, err)
	t.Cleanup(func() { cli.Close() })
	f.reg = register(t, cli, startServer(t, "a"), registry.WithTTL(2*time.Second), registry.WithFence(f.fence),
		registry.WithNotify(func(s registry.State) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.states = append(f.states, s)
		}))
	return f
}

func (f *fenced) told(t *testing.T, want ...registry.State) {
	t.Helper()
	var got []registry.State
	soon(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		got = append([]registry.State{}, f.states...)
		return len(got) >= len(want)
	}, "the states are told")
	require.Equal(t, want, got)
}

// restore ends the cut.
func (f *fenced) restore(t *testing.T) {
	t.Helper()
	f.etcd.restore()
	within(t, 15*time.Second, func() bool { return !f.fence.Fenced() }, "the fence is lifted")
	require.Contains(t, listed(t, f.direct), "a", "and not before it is registered")
}

func TestAServerThatIsCutOffFromEtcdIsFencedWhenItsClientsLetGo(t *testing.T) {
	const keep = 2 * time.Second
	f := registerFenced(t, keep)
	require.False(t, f.fence.Fenced())
	f.etcd.cut()
	soon(t, func() bool { return len(listed(t, f.direct)) == 0 }, "its lease ends")
	gone := time.Now()
	require.False(t, f.fence.Fenced(), "its clients keep it")
	soon(t, f.fence.Fenced, "the fence falls")
	require.Less(t, time.Since(gone), keep)
	f.told(t, registry.Registered, registry.Lost, registry.Fenced)
	f.restore(t)
	f.told(t, registry.Registered, registry.Lost, registry.Fenced, registry.Registered)
}

func TestAFenceThatKeepsNobodyFallsBeforeTheRecordIsGone(t *testing.T) {
	f := registerFenced(t, 0)
	f.etcd.cut()
	soon(t, func() bool { return len(listed(t, f.direct)) == 0 }, "its lease ends")
	require.True(t, f.fence.Fenced())
	f.restore(t)
	f.told(t, registry.Registered, registry.Fenced, registry.Registered)
}

func TestAFenceStaysOpenWhileEtcdAnswers(t *testing.T) {
	f := registerFenced(t, 0)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		require.False(t, f.fence.Fenced())
	}
	f.told(t, registry.Registered)
}

func TestARecordThatWasDeletedFencesUntilItIsBack(t *testing.T) {
	f := registerFenced(t, 0)
	_, err := f.direct.Delete(bg, service+"/a")
	require.NoError(t, err)
	f.told(t, registry.Registered, registry.Fenced, registry.Registered)
	require.False(t, f.fence.Fenced())
	require.Contains(t, listed(t, f.direct), "a")
}

func TestAServerThatSaidGoodbyeIsFenced(t *testing.T) {
	f := registerFenced(t, time.Hour)
	require.NoError(t, f.reg.Drain(bg))
	require.False(t, f.fence.Fenced(), "it keeps what it has")
	require.NoError(t, f.reg.Close(bg))
	require.True(t, f.fence.Fenced())
	f.told(t, registry.Registered, registry.Draining, registry.Closed)
}
