package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// hookKV lets a test get between the client and etcd.
type hookKV struct {
	clientv3.KV
	get    func(ctx context.Context, op clientv3.Op) error
	commit func(ctx context.Context, do func() (*clientv3.TxnResponse, error)) (*clientv3.TxnResponse, error)
}

func (h *hookKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if h.get != nil {
		if err := h.get(ctx, clientv3.OpGet(key, opts...)); err != nil {
			return nil, err
		}
	}
	return h.KV.Get(ctx, key, opts...)
}
func (h *hookKV) Txn(ctx context.Context) clientv3.Txn { return &hookTxn{h.KV.Txn(ctx), ctx, h} }

type hookTxn struct {
	clientv3.Txn
	ctx context.Context
	h   *hookKV
}

func (t *hookTxn) If(c ...clientv3.Cmp) clientv3.Txn { t.Txn = t.Txn.If(c...); return t }
func (t *hookTxn) Then(o ...clientv3.Op) clientv3.Txn {
	t.Txn = t.Txn.Then(o...)
	return t
}
func (t *hookTxn) Commit() (*clientv3.TxnResponse, error) {
	if t.h.commit != nil {
		return t.h.commit(t.ctx, t.Txn.Commit)
	}
	return t.Txn.Commit()
}

// Continuous writes in a healthy etcd.
func TestAHealthyEtcdUnderWritesIsListedOnce(t *testing.T) {
	e := startEtcd(t)
	cli, direct := e.newClient(), e.newClient()
	var lists, looks atomic.Int64
	cli.KV = &hookKV{KV: cli.KV, get: func(_ context.Context, op clientv3.Op) error {
		if op.IsKeysOnly() || op.IsCountOnly() {
			looks.Add(1)
		} else {
			lists.Add(1)
		}
		return nil
	}}
	for i := range 200 {
		_, err := direct.Put(bg, fmt.Sprintf("%s/s%d", service, i), `{"Addr":"127.0.0.1:1"}`)
		require.NoError(t, err)
	}
	ctx, cancel := context.WithTimeout(bg, 3*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var writes atomic.Int64
	for w := range 2 {
		wg.Go(func() {
			for i := w; ctx.Err() == nil; i += 2 {
				direct.Put(ctx, fmt.Sprintf("%s/s%d", service, i%200), fmt.Sprintf(`{"Addr":"127.0.0.1:%d"}`, 1+i%1000))
				writes.Add(1)
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	c := newChannel(t, cli, stickybalancer.Config{})
	c.conn.Connect()
	wg.Wait()
	t.Logf("%d writes, %d looks, %d full lists", writes.Load(), looks.Load(), lists.Load())
	require.EqualValues(t, 1, lists.Load(), "etcd was healthy all the time")
}

// As TestAWipedEtcdThatHasGrownAgainIsNoticed, with a server that updates its record (its load, say).
func TestAWipedEtcdIsNoticedWhileTheServiceIsBusy(t *testing.T) {
	e := startEtcd(t)
	_, c := e.wiped(t, 0)
	direct := e.newClient()
	register(t, direct, startServer(t, "new"))
	busy := register(t, direct, startServer(t, "busy"))
	for range 100 {
		_, err := direct.Put(bg, "unrelated", "x")
		require.NoError(t, err)
	}
	stop, end := context.WithCancel(bg)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; stop.Err() == nil; i++ {
			busy.Update(stop, func(m *endpointsmeta.Meta) { m.Labels = map[string]string{"load": fmt.Sprint(i)} })
			time.Sleep(200 * time.Millisecond)
		}
	})
	defer wg.Wait()
	defer end()
	c.sees("new", "busy")
}

type stubborn struct {
	testpb.UnimplementedTestServiceServer
	in, out chan struct{}
}

func (s *stubborn) UnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	close(s.in)
	<-s.out // does not look at its ctx
	return &testpb.SimpleResponse{}, nil
}

// A handler that does not look at its ctx.
func TestServeIsBoundedWhateverHandlersDo(t *testing.T) {
	cli := startEtcd(t).newClient()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	h := &stubborn{in: make(chan struct{}), out: make(chan struct{})}
	srv := grpc.NewServer()
	testpb.RegisterTestServiceServer(srv, h)
	ctx, leave := context.WithCancel(bg)
	ended := make(chan error, 1)
	go func() {
		ended <- registry.Serve(ctx, cli, service, srv, lis, endpointsmeta.Meta{ID: "a"}, registry.WithDrainTimeout(time.Second))
	}()
	c := newChannel(t, cli, stickybalancer.Config{})
	go c.call(bg, grpc.WaitForReady(true))
	<-h.in
	leave()
	defer close(h.out)
	select {
	case <-ended:
	case <-time.After(8 * time.Second):
		t.Fatal("Serve with a drain timeout of 1s is still there after 8s")
	}
}

// "srv is stopped whenever Serve returns".
func TestServeStopsTheServerWhenTheListenerFails(t *testing.T) {
	cli := startEtcd(t).newClient()
	s := newServer(t, "a")
	ended := make(chan error, 1)
	go func() {
		ended <- registry.Serve(bg, cli, service, s.grpc, s.lis, endpointsmeta.Meta{ID: "a"})
	}()
	c := newChannel(t, cli, stickybalancer.Config{})
	c.sees("a")
	s.lis.Close()
	require.Error(t, <-ended)
	_, err := c.call(bg)
	require.Error(t, err, "the server still answers")
}

// The server is stopped while it registers.
func TestServeSaysThatTheServerWasStopped(t *testing.T) {
	e := newEtcd(t) // away
	s := newServer(t, "a")
	ended := make(chan error, 1)
	go func() {
		ended <- registry.Serve(bg, e.newClient(), service, s.grpc, s.lis, endpointsmeta.Meta{ID: "a"})
	}()
	time.Sleep(300 * time.Millisecond)
	s.grpc.Stop()
	err := <-ended
	t.Logf("%v", err)
	require.NotContains(t, fmt.Sprint(err), "%!w")
}

// Draining is announced before it is written.
func TestDrainingIsToldWhenItIsWritten(t *testing.T) {
	e := startEtcd(t)
	cli, direct := e.newClient(), e.newClient()
	var n atomic.Int64
	atSecond, goOn := make(chan struct{}), make(chan struct{})
	thirdDone := make(chan struct{})
	cli.KV = &hookKV{KV: cli.KV, commit: func(ctx context.Context, do func() (*clientv3.TxnResponse, error)) (*clientv3.TxnResponse, error) {
		switch n.Add(1) {
		case 2: // the put after the loss
			resp, err := do()
			close(atSecond)
			<-goOn
			return resp, err
		case 3: // the put of Draining
			select {
			case <-thirdDone:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return do()
	}}
	states := make(chan registry.State, 10)
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"},
		registry.WithNotify(func(s registry.State) { states <- s }))
	require.NoError(t, err)
	require.Equal(t, registry.Registered, <-states)
	_, err = direct.Delete(bg, service+"/a")
	require.NoError(t, err)
	require.Equal(t, registry.Lost, <-states)
	<-atSecond
	drained := make(chan error, 1)
	go func() { drained <- reg.Drain(bg) }()
	time.Sleep(100 * time.Millisecond)
	close(goOn)
	s := <-states
	written := listed(t, direct)["a"].Meta.Draining
	close(thirdDone)
	require.NoError(t, <-drained)
	require.NoError(t, reg.Close(bg))
	require.Equal(t, s == registry.Draining, written, "told %v while etcd says draining=%v", s, written)
}

// Close after a put back that did not come through: the record is still under the lease before.
func TestCloseRevokesEveryLeaseThatTheRecordMayBeUnder(t *testing.T) {
	e := startEtcd(t)
	cli, direct := e.newClient(), e.newClient()
	var n atomic.Int64
	third := make(chan struct{})
	cli.KV = &hookKV{KV: cli.KV, commit: func(ctx context.Context, do func() (*clientv3.TxnResponse, error)) (*clientv3.TxnResponse, error) {
		switch n.Add(1) {
		case 2: // the put after the loss: it arrives, its answer does not
			do()
			return nil, context.DeadlineExceeded
		case 3: // the next one does not arrive
			close(third)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return do()
	}}
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(30*time.Second))
	require.NoError(t, err)
	_, err = direct.Delete(bg, service+"/a")
	require.NoError(t, err)
	<-third
	require.NoError(t, reg.Close(bg))
	require.Empty(t, listed(t, direct), "Close returned nil and the record stands")
}

// Overwritten by hand under the same lease.
func TestARecordOverwrittenUnderItsOwnLeaseIsPutBack(t *testing.T) {
	cli := startEtcd(t).newClient()
	_, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(2*time.Second))
	require.NoError(t, err)
	_, err = cli.Put(bg, service+"/a", "garbage", clientv3.WithIgnoreLease())
	require.NoError(t, err)
	soon(t, func() bool { return len(listed(t, cli)) == 1 }, "the record is put back")
}

// A record that etcd can never take.
func TestARecordThatIsTooLargeIsRefused(t *testing.T) {
	cli := startEtcd(t).newClient()
	for _, size := range []int{1700 << 10, 3 << 20} {
		ctx, cancel := context.WithTimeout(bg, 5*time.Second)
		start := time.Now()
		_, err := registry.Register(ctx, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a", Labels: map[string]string{"x": strings.Repeat("x", size)}})
		cancel()
		t.Logf("%d: after %v: %v", size, time.Since(start), err)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%d: tried again till the end", size)
		}
	}
}

// Update with such a record, and what it does to the registration.
func TestAnUpdateThatIsTooLargeIsRefusedAndHarmsNothing(t *testing.T) {
	cli := startEtcd(t).newClient()
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(bg, 5*time.Second)
	defer cancel()
	err = reg.Update(ctx, func(m *endpointsmeta.Meta) { m.Labels = map[string]string{"x": strings.Repeat("x", 1700<<10)} })
	t.Log(err)
	if errors.Is(err, context.DeadlineExceeded) {
		t.Error("Update hangs on an error that is for good")
	}
	_, err = cli.Delete(bg, service+"/a")
	require.NoError(t, err)
	soon(t, func() bool { return len(listed(t, cli)) == 1 }, "the record is put back")
}

// An address that becomes an id that no client accepts.
func TestAnAddressThatIsNoIDIsRefused(t *testing.T) {
	cli := startEtcd(t).newClient()
	reg, err := registry.Register(bg, cli, service, "sérver:80", endpointsmeta.Meta{})
	if err == nil {
		require.Len(t, listed(t, cli), 1, "Register says %v", reg.State())
	}
}

// "a" and "a/b".
func TestAServiceIsNotTheOnesBelowIt(t *testing.T) {
	cli := startEtcd(t).newClient()
	_, err := registry.Register(bg, cli, "game/eu", "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.NoError(t, err)
	l, err := registry.List(bg, cli, "game")
	require.NoError(t, err)
	require.Empty(t, l)
}

// A change of leader refreshes every lease; the predecessor is dead all the same.
func TestADeadPredecessorIsWaitedForAcrossALeaderChange(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	lease, err := cli.Grant(bg, 6)
	require.NoError(t, err)
	_, err = cli.Put(bg, service+"/a", `{"Addr":"127.0.0.1:1","Metadata":{"id":"a","incarnation":1}}`, clientv3.WithLease(lease.ID))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(bg, 60*time.Second)
	defer cancel()
	registered := make(chan error, 1)
	go func() {
		_, err := registry.Register(ctx, cli, service, "127.0.0.1:2", endpointsmeta.Meta{ID: "a"})
		registered <- err
	}()
	time.Sleep(3 * time.Second) // it has seen the lease by then
	e.stop()
	e.start()
	require.NoError(t, <-registered)
}

// One slow read, a lease that is well.
func TestASlowReadIsNoLoss(t *testing.T) {
	e := startEtcd(t)
	cli, direct := e.newClient(), e.newClient()
	var slow atomic.Bool
	cli.KV = &hookKV{KV: cli.KV, get: func(ctx context.Context, op clientv3.Op) error {
		if slow.CompareAndSwap(true, false) {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}}
	var lost atomic.Int64
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(2*time.Second),
		registry.WithNotify(func(s registry.State) {
			if s == registry.Lost {
				lost.Add(1)
			}
		}))
	require.NoError(t, err)
	defer reg.Close(bg)
	time.Sleep(time.Second)
	before := revision(t, direct)
	for range 3 {
		slow.Store(true)
		time.Sleep(4 * time.Second)
	}
	require.Zero(t, lost.Load(), "times Lost, while the record stood (revision %d, now %d)", before, revision(t, direct))
}

// Leases of writes that fail.
func TestFailedWritesLeaveNoLeases(t *testing.T) {
	e := startEtcd(t)
	cli, direct := e.newClient(), e.newClient()
	var deny atomic.Bool
	cli.KV = &hookKV{KV: cli.KV, commit: func(ctx context.Context, do func() (*clientv3.TxnResponse, error)) (*clientv3.TxnResponse, error) {
		if deny.Load() {
			return nil, errors.New("put denied")
		}
		return do()
	}}
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(time.Hour))
	require.NoError(t, err)
	time.Sleep(500 * time.Millisecond)
	deny.Store(true)
	_, err = direct.Delete(bg, service+"/a")
	require.NoError(t, err)
	soon(t, reg.Lost, "it notices")
	time.Sleep(6 * time.Second)
	require.NoError(t, reg.Close(bg))
	l, err := direct.Leases(bg)
	require.NoError(t, err)
	require.Empty(t, l.Leases, "leases of an hour left behind after 6s and Close")
}

// slowWatcher answers late, as an overloaded member does. (clientv3's Watch blocks until etcd has confirmed the watch.)
type slowWatcher struct {
	clientv3.Watcher
	d time.Duration
}

func (w slowWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	select {
	case <-ctx.Done():
	case <-time.After(w.d):
	}
	return w.Watcher.Watch(ctx, key, opts...)
}

// Keepalive waits for the watch.
func TestALeaseIsKeptAliveWhileTheWatchIsMade(t *testing.T) {
	e := startEtcd(t)
	cli, direct := e.newClient(), e.newClient()
	cli.Watcher = slowWatcher{cli.Watcher, 6 * time.Second}
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(2*time.Second))
	require.NoError(t, err)
	defer reg.Close(bg)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		require.Len(t, listed(t, direct), 1, "the lease has run out; state %v", reg.State())
	}
}

// Two members (here: two ways to one), no client keepalive; the one that carries the watch freezes.
func TestAWatchOnAFrozenMemberIsReplaced(t *testing.T) {
	e := startEtcd(t)
	direct := e.newClient()
	n := 0
	put := func() {
		n++
		_, err := direct.Put(bg, fmt.Sprintf("%s/x%d", service, n), fmt.Sprintf(`{"Addr":"127.0.0.1:%d"}`, n))
		require.NoError(t, err)
	}
	for range 40 { // each is the one or the other
		p1, p2 := newProxy(t, e.client.Host), newProxy(t, e.client.Host)
		cli, err := clientv3.New(clientv3.Config{Endpoints: []string{p1.lis.Addr().String(), p2.lis.Addr().String()}, Logger: zap.NewNop()})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(bg)
		var seen atomic.Int64
		var wg sync.WaitGroup
		wg.Go(func() {
			for l, err := range registry.Watch(ctx, cli, service) {
				if err == nil {
					seen.Store(int64(len(l)))
				}
			}
		})
		defer wg.Wait()
		defer cli.Close()
		defer cancel()
		put()
		soon(t, func() bool { return seen.Load() == int64(n) }, "the watch works")
		time.Sleep(300 * time.Millisecond)
		p1.forget()
		put()
		time.Sleep(time.Second)
		if seen.Load() == int64(n) {
			continue // the watch is on the other
		}
		within(t, 30*time.Second, func() bool { return seen.Load() == int64(n) }, "a look finds what the watch missed")
		t.Log("found once")
		put()
		within(t, 40*time.Second, func() bool { return seen.Load() == int64(n) }, "a look finds it a second time")
		return
	}
	t.Fatal("the watch was never on the first of the two")
}

// A second Close, at the same time.
func TestASecondCloseWaitsForTheFirst(t *testing.T) {
	e := startEtcd(t)
	cli, direct := e.newClient(), e.newClient()
	cli.Lease = slowRevoke{cli.Lease}
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.NoError(t, err)
	go reg.Close(bg)
	time.Sleep(100 * time.Millisecond)
	require.NoError(t, reg.Close(bg))
	require.Equal(t, registry.Closed, reg.State())
	require.Empty(t, listed(t, direct), "Close returned nil")
}

type slowRevoke struct{ clientv3.Lease }

func (l slowRevoke) Revoke(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseRevokeResponse, error) {
	time.Sleep(300 * time.Millisecond)
	return l.Lease.Revoke(ctx, id)
}

// What the reader does with a list.
func TestTheListIsTheCallersToChange(t *testing.T) {
	cli := startEtcd(t).newClient()
	_, err := cli.Put(bg, service+"/a", `{"Addr":"127.0.0.1:1","Metadata":{"labels":{"v":"1"}}}`)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(bg, 10*time.Second)
	defer cancel()
	n := 0
	for l, err := range registry.Watch(ctx, cli, service) {
		require.NoError(t, err)
		require.Equal(t, "1", l[0].Meta.Labels["v"])
		l[0].Meta.Labels["v"] = "mine"
		if n++; n == 2 {
			break
		}
		_, err = cli.Put(bg, service+"/b", `{"Addr":"127.0.0.1:2"}`)
		require.NoError(t, err)
	}
}

// The word that came last is the last word.
func TestWatchYieldsAnErrorAfterTheListThatCameFirst(t *testing.T) {
	e := startEtcd(t)
	cli, direct := e.newClient(), e.newClient()
	var down atomic.Bool
	cli.KV = &hookKV{KV: cli.KV, get: func(context.Context, clientv3.Op) error {
		if down.Load() {
			return errors.New("down")
		}
		return nil
	}}
	ctx, cancel := context.WithTimeout(bg, 20*time.Second)
	defer cancel()
	var words []string
	for _, err := range registry.Watch(ctx, cli, service) {
		words = append(words, fmt.Sprint(err))
		if len(words) == 1 {
			_, err := direct.Put(bg, service+"/b", `{"Addr":"127.0.0.1:2"}`) // a list
			require.NoError(t, err)
			time.Sleep(300 * time.Millisecond)
			down.Store(true)
			time.Sleep(6 * time.Second) // then an error, of a probe
		}
		if len(words) == 3 {
			break
		}
	}
	require.NotEqual(t, "<nil>", words[2], "list, then error: %q", words)
}

// What happens between the put and the watch.
func TestARecordDeletedBeforeItsWatchStandsIsPutBackAtOnce(t *testing.T) {
	e := startEtcd(t)
	cli, direct := e.newClient(), e.newClient()
	cli.Watcher = slowWatcher{cli.Watcher, 200 * time.Millisecond}
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(time.Minute))
	require.NoError(t, err)
	defer reg.Close(bg)
	_, err = direct.Delete(bg, service+"/a")
	require.NoError(t, err)
	soon(t, func() bool { return len(listed(t, direct)) == 1 }, "it is put back")
}

// The same, with a member that is 20 ms further away than the one that carries the watch, and 30 writes a second.
func TestAMemberThatIsFarIsListedOnce(t *testing.T) {
	e := startEtcd(t)
	cli, direct := e.newClient(), e.newClient()
	var lists, looks atomic.Int64
	cli.KV = &farKV{cli.KV, &looks, &lists}
	ctx, cancel := context.WithTimeout(bg, 3*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			direct.Put(ctx, fmt.Sprintf("%s/s%d", service, i%200), fmt.Sprintf(`{"Addr":"127.0.0.1:%d"}`, 1+i%1000))
			time.Sleep(30 * time.Millisecond)
		}
	})
	b, err := registry.NewBuilder(cli, registry.WithProbeInterval(500*time.Millisecond))
	require.NoError(t, err)
	c := newChannelWith(t, b, stickybalancer.Config{})
	c.conn.Connect()
	wg.Wait()
	t.Logf("%d looks, %d full lists", looks.Load(), lists.Load())
	require.EqualValues(t, 1, lists.Load(), "etcd was healthy all the time")
}

type farKV struct {
	clientv3.KV
	looks, lists *atomic.Int64
}

func (k *farKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if op := clientv3.OpGet(key, opts...); op.IsKeysOnly() || op.IsCountOnly() {
		k.looks.Add(1)
	} else {
		k.lists.Add(1)
	}
	defer time.Sleep(20 * time.Millisecond)
	return k.KV.Get(ctx, key, opts...)
}

// No quorum, a stale member answers, and the builder remembers better.
func TestAStaleListDoesNotReplaceTheRememberedOne(t *testing.T) {
	e := startEtcd(t)
	cli, direct := e.newClient(), e.newClient()
	old, err := direct.Put(bg, "unrelated", "x") // what the lagging member knows: nobody is registered
	require.NoError(t, err)
	hook := &staleKV{KV: cli.KV, rev: old.Header.Revision}
	cli.KV = hook
	register(t, direct, startServer(t, "a"))
	b, err := registry.NewBuilder(cli)
	require.NoError(t, err)
	c := newChannelWith(t, b, stickybalancer.Config{AbsentGrace: -1}, grpc.WithIdleTimeout(300*time.Millisecond))
	c.sees("a")
	hook.down.Store(true)
	soon(t, func() bool { return c.conn.GetState().String() == "IDLE" }, "the channel idles")
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		_, err := c.call(bg)
		require.NoError(t, err)
	}
}

type staleKV struct {
	clientv3.KV
	rev  int64
	down atomic.Bool
}

func (k *staleKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if k.down.Load() {
		if !clientv3.OpGet(key, opts...).IsSerializable() {
			return nil, errors.New("no leader")
		}
		opts = append(opts, clientv3.WithRev(k.rev))
	}
	return k.KV.Get(ctx, key, opts...)
}
