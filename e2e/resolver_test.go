package e2e

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	official "go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// Fact 1: the official resolver hands on addresses only.
func TestMetadataReachesThePicker(t *testing.T) {
	cli := startEtcd(t).newClient()
	a, b := startServer(t, "a"), startServer(t, "b")
	registerMeta(t, cli, a, endpointsmeta.Meta{ID: "a", Weight: 1})
	reg := registerMeta(t, cli, b, endpointsmeta.Meta{ID: "b", Weight: 3})
	c := newChannel(t, cli, stickybalancer.Config{})
	c.sees("a", "b")
	got := map[string]int{}
	for range 400 {
		id, err := c.call(bg)
		require.NoError(t, err)
		got[id]++
	}
	require.InDelta(t, 300, got["b"], 4)
	require.NoError(t, reg.Drain(bg))
	c.sees("a")
	c.reaches("b", affinity.Require(bg, "b"))
}

// Fact 2: the official Build lists without a deadline, under locks of the
// channel, so that deadlines, cancellation and Close are all ignored.
func TestWithEtcdAbsentCallsFailByTheirDeadlineAndWorkWhenItComes(t *testing.T) {
	e := newEtcd(t)
	c := newChannel(t, e.newClient(), stickybalancer.Config{})
	ctx, cancel := context.WithTimeout(bg, 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := c.call(ctx)
	require.Less(t, time.Since(start), 400*time.Millisecond)
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, "out of reach")
	require.ErrorContains(t, err, e.client.Host)

	s := startServer(t, "a")
	e.start()
	up := time.Now()
	register(t, e.newClient(), s)
	within(t, 2*time.Second-time.Since(up), func() bool {
		_, err := c.call(bg)
		return err == nil
	}, "calls succeed after etcd has started")
}

func TestCloseReturnsAtOnceWhileEtcdIsAbsent(t *testing.T) {
	e := newEtcd(t)
	c := newChannel(t, e.newClient(), stickybalancer.Config{})
	c.conn.Connect()
	start := time.Now()
	require.NoError(t, c.conn.Close())
	require.Less(t, time.Since(start), 200*time.Millisecond)
}

func TestWithEtcdStoppedAfterwardsCallsGoOn(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	for _, id := range []string{"a", "b", "c"} {
		register(t, cli, startServer(t, id), registry.WithTTL(shortTTL))
	}
	c := newChannel(t, cli, stickybalancer.Config{})
	c.sees("a", "b", "c")
	e.stop()
	for end := time.Now().Add(3 * shortTTL); time.Now().Before(end); {
		_, err := c.call(bg)
		require.NoError(t, err)
		c.reaches("b", affinity.Require(bg, "b"))
	}
}

// Fact 2, second half: an idle channel has no resolver, so its list is gone.
func TestAChannelThatWakesWhileEtcdIsDownHasTheLastList(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	register(t, cli, startServer(t, "a"))
	c := newChannel(t, cli, stickybalancer.Config{}, grpc.WithIdleTimeout(300*time.Millisecond))
	c.sees("a")
	e.stop()
	soon(t, func() bool { return c.conn.GetState().String() == "IDLE" }, "the channel idles")
	c.reaches("a", affinity.Require(bg, "a"))
}

// Facts 3 and 11: the official watch ends for good at a compaction.
func TestACompactionUnderAnIdleWatchIsSurvived(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	register(t, cli, startServer(t, "a"))
	c := newChannel(t, cli, stickybalancer.Config{})
	c.sees("a")
	e.stop()
	e.start()
	var last int64
	for i := range 20 {
		resp, err := cli.Put(bg, "unrelated", fmt.Sprint(i))
		require.NoError(t, err)
		last = resp.Header.Revision
	}
	_, err := cli.Compact(bg, last)
	require.NoError(t, err)
	e.stop() // resets the connection that the watch is on
	e.start()
	register(t, cli, startServer(t, "b"))
	c.sees("a", "b")
}

// Fact 4: the official watch waits in silence for a revision that never comes.
func TestAWipedEtcdIsNoticed(t *testing.T) {
	e := startEtcd(t)
	cli, c := e.wiped(t, 100)
	register(t, cli, startServer(t, "new"))
	c.sees("new")
}

// Fact 5: the official resolver never reports, and fail-fast calls hang.
func TestWithNothingRegisteredCallsFailAtOnce(t *testing.T) {
	c := newChannel(t, startEtcd(t).newClient(), stickybalancer.Config{})
	start := time.Now()
	_, err := c.call(bg)
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, `no servers: the resolver's list for "etcd:///`+service+`" is empty`)
	require.Less(t, time.Since(start), time.Second)
}

// Fact 6: an etcd that forgets living servers empties the official list, and
// 2.4 ms later every call fails.
func TestAllKeysDeletedAtOnceMoveNobody(t *testing.T) {
	cli := startEtcd(t).newClient()
	m, err := endpoints.NewManager(cli, service)
	require.NoError(t, err)
	ids := []string{"a", "b", "c"}
	for _, id := range ids { // nothing puts these back
		s := startServer(t, id)
		require.NoError(t, m.AddEndpoint(bg, service+"/"+id, endpoints.Endpoint{Addr: s.addr, Metadata: endpointsmeta.Meta{ID: id}}))
	}
	c := newChannel(t, cli, stickybalancer.Config{})
	c.sees(ids...)
	_, err = cli.Delete(bg, service+"/", clientv3.WithPrefix())
	require.NoError(t, err)
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
		for _, id := range ids {
			c.reaches(id, affinity.Require(bg, id))
			_, err := c.call(bg)
			require.NoError(t, err)
		}
	}
}

// Fact 8: 3000 registrations one by one convert 4.5 million endpoints in the
// official resolver. Lists made while one is taken in become one.
func TestABurstOfRegistrationsIsTakenInAsAFewLists(t *testing.T) {
	cli := startEtcd(t).newClient()
	const n = 3000
	var updates, last atomic.Int64
	ctx, cancel := context.WithTimeout(bg, time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		for list, err := range registry.Watch(ctx, cli, service) {
			if err == nil {
				updates.Add(1)
				last.Store(int64(len(list)))
			}
			if len(list) == n {
				return
			}
		}
	})
	var puts sync.WaitGroup
	for w := range 8 {
		puts.Go(func() {
			for i := w; i < n; i += 8 {
				_, err := cli.Put(bg, fmt.Sprintf("%s/s%d", service, i), fmt.Sprintf(`{"Addr":"127.0.0.1:%d"}`, i+1))
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	puts.Wait()
	wg.Wait()
	require.EqualValues(t, n, last.Load())
	t.Logf("%d registrations, %d lists", n, updates.Load())
}

// Fact 9: about 20 goroutines stay behind with the official resolver.
func TestBuildAndCloseUnderChurnLeaveNothingBehind(t *testing.T) {
	cli := startEtcd(t).newClient()
	a := startServer(t, "a")
	register(t, cli, a)
	ctx, cancel := context.WithCancel(bg)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			cli.Put(ctx, fmt.Sprintf("%s/x%d", service, i%7), fmt.Sprintf(`{"Addr":"127.0.0.1:%d"}`, i%1000+1))
		}
	})
	round := func() {
		c := newChannel(t, cli, stickybalancer.Config{})
		c.conn.Connect()
		c.reaches("a", affinity.Require(bg, "a"))
		c.conn.Close()
	}
	round()
	before := runtime.NumGoroutine()
	for range 30 {
		round()
	}
	soon(t, func() bool { return runtime.NumGoroutine() <= before+3 }, "goroutines are back to what they were")
	cancel()
	wg.Wait()
}

// Fact 10: bad values become the endpoint "", and a good key overwritten with
// garbage keeps its old address in old clients and not in new ones.
func TestBadRecordsHideNoGoodOnes(t *testing.T) {
	cli := startEtcd(t).newClient()
	for key, value := range map[string]string{
		"empty": `{}`, "null": `null`, "noaddr": `{"Addr":""}`, "garbage": `garbage`,
		"list": `[]`, "badmeta": `{"Addr":"127.0.0.1:1","Metadata":{"id":7}}`, "number": `{"Addr":"127.0.0.1:1","Metadata":7}`,
	} {
		_, err := cli.Put(bg, service+"/"+key, value)
		require.NoError(t, err)
	}
	a, b := startServer(t, "a"), startServer(t, "b")
	register(t, cli, a)
	_, err := cli.Put(bg, service+"/old", fmt.Sprintf(`{"Addr":%q,"Metadata":"b"}`, b.addr))
	require.NoError(t, err)
	require.Len(t, listed(t, cli), 2)
	c := newChannel(t, cli, stickybalancer.Config{AbsentGrace: -1})
	c.sees("a", "b")
	c.reaches("b", affinity.Require(bg, "b"))
	_, err = cli.Put(bg, service+"/old", "garbage")
	require.NoError(t, err)
	c.sees("a")
	newChannel(t, cli, stickybalancer.Config{}).sees("a")
}

// Fact 10, last part: two keys with one address are one server, whose id does not
// flip.
func TestTwoKeysWithOneAddressAreOneServer(t *testing.T) {
	cli := startEtcd(t).newClient()
	a := startServer(t, "a")
	for _, id := range []string{"a", "z"} {
		_, err := cli.Put(bg, service+"/"+id, fmt.Sprintf(`{"Addr":%q,"Metadata":{"id":%q}}`, a.addr, id))
		require.NoError(t, err)
	}
	for range 5 {
		c := newChannel(t, cli, stickybalancer.Config{ReconnectWindow: -1})
		c.sees("a")
		c.reaches("a", affinity.Require(bg, "a"))
		_, err := c.call(affinity.Require(bg, "z"))
		require.Equal(t, codes.Unavailable, status.Code(err))
		c.conn.Close()
	}
}

func TestThePlainOfficialResolverWorksToo(t *testing.T) {
	cli := startEtcd(t).newClient()
	a, b := startServer(t, "a"), startServer(t, "b")
	register(t, cli, a)
	register(t, cli, b)
	builder, err := official.NewBuilder(cli)
	require.NoError(t, err)
	c := newChannelWith(t, builder, stickybalancer.Config{})
	c.sees("a", "b")
	c.reaches("b", affinity.Require(bg, b.addr))
	c.reaches("a", affinity.With(bg, a.addr))
}

// Decision table, end to end over TCP.
func TestIDRowsHoldEndToEnd(t *testing.T) {
	cli := startEtcd(t).newClient()
	a, b := startServer(t, "a"), startServer(t, "b")
	register(t, cli, a)
	reg := register(t, cli, b)
	c := newChannel(t, cli, stickybalancer.Config{ReconnectWindow: 200 * time.Millisecond})
	c.sees("a", "b")

	c.reaches("b", affinity.Require(bg, "b"))
	c.reaches("b", affinity.With(bg, "b"))

	require.NoError(t, reg.Drain(bg))
	c.sees("a")
	c.reaches("b", affinity.Require(bg, "b"))
	c.reaches("b", affinity.With(bg, "b"))

	require.NoError(t, reg.Close(bg))
	soon(t, func() bool { id, err := c.call(affinity.With(bg, "b")); return err == nil && id == "a" }, "the call finds another home")
	_, err := c.call(affinity.Require(bg, "b"))
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, `"b"`)
	start := time.Now()
	_, err = c.call(affinity.Require(bg, "nobody"))
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.Less(t, time.Since(start), time.Second)
}

func TestAServerThatRestartsOnAnotherAddressKeepsItsOwn(t *testing.T) {
	cli := startEtcd(t).newClient()
	register(t, cli, startServer(t, "a"))
	b := startServer(t, "b")
	reg := register(t, cli, b)
	c := newChannel(t, cli, stickybalancer.Config{})
	c.sees("a", "b")
	require.NoError(t, reg.Close(bg))
	b.grpc.Stop()
	register(t, cli, startServer(t, "b"))
	// A call that is on the wire when the server ends is lost with it.
	soon(t, func() bool {
		id, err := c.call(affinity.With(bg, "b"))
		require.NotEqual(t, "a", id)
		return err == nil
	}, "the call reaches the server elsewhere")
}

// Fact 27: what leaves in bulk leaves in many events. Servers that live are kept
// one by one, whatever the number.
func TestARemovalOneByOneMovesNobody(t *testing.T) {
	cli := startEtcd(t).newClient()
	m, err := endpoints.NewManager(cli, service)
	require.NoError(t, err)
	ids := []string{"a", "b", "c", "d"}
	for _, id := range ids {
		s := startServer(t, id)
		require.NoError(t, m.AddEndpoint(bg, service+"/"+id, endpoints.Endpoint{Addr: s.addr, Metadata: endpointsmeta.Meta{ID: id}}))
	}
	c := newChannel(t, cli, stickybalancer.Config{})
	c.sees(ids...)
	for _, id := range ids {
		require.NoError(t, m.DeleteEndpoint(bg, service+"/"+id))
		soon(t, func() bool { _, there := listed(t, cli)[id]; return !there }, "it has left the list")
		for _, id := range ids {
			c.reaches(id, affinity.Require(bg, id))
		}
	}
}
