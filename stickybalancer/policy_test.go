package stickybalancer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	estats "google.golang.org/grpc/experimental/stats"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/metricstest"
)

// fakeChannel is the policy's balancer.ClientConn. What it does not implement
// panics, which is the point.
type fakeChannel struct {
	balancer.ClientConn
	t        *testing.T
	recorder estats.MetricsRecorder // nil: nobody records

	mu        sync.Mutex
	conns     []*fakeConn // in the order they were made
	state     balancer.State
	published int
	closed    bool
}

// fakeConn is a SubConn that does as the test says.
type fakeConn struct {
	balancer.SubConn
	channel  *fakeChannel
	serial   int
	addr     string
	listener func(balancer.SubConnState)

	state connectivity.State // as delivered

	// Guarded by channel.mu.
	wanted bool // Connect was called since it was idle
	shut   bool
	health func(balancer.SubConnState)
}

func (f *fakeChannel) NewSubConn(addrs []resolver.Address, opts balancer.NewSubConnOptions) (balancer.SubConn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		f.t.Error("NewSubConn after Close")
	}
	c := &fakeConn{channel: f, serial: len(f.conns), addr: addrs[0].Addr, listener: opts.StateListener}
	f.conns = append(f.conns, c)
	return c, nil
}

func (f *fakeChannel) UpdateState(s balancer.State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		f.t.Error("UpdateState after Close")
	}
	f.state = s
	f.published++
}

func (f *fakeChannel) MetricsRecorder() estats.MetricsRecorder {
	if f.recorder == nil {
		return estats.UnimplementedMetricsRecorder{}
	}
	return f.recorder
}

func (c *fakeConn) Connect() {
	c.channel.mu.Lock()
	defer c.channel.mu.Unlock()
	c.wanted = true
}

func (c *fakeConn) Shutdown() {
	c.channel.mu.Lock()
	defer c.channel.mu.Unlock()
	c.shut = true
}

func (c *fakeConn) RegisterHealthListener(l func(balancer.SubConnState)) {
	c.channel.mu.Lock()
	defer c.channel.mu.Unlock()
	c.health = l
}

func (c *fakeConn) String() string { return fmt.Sprintf("%s#%d", c.addr, c.serial) }

// driver drives one policy as gRPC would: one call into it at a time.
type driver struct {
	t       *testing.T
	channel *fakeChannel
	lb      balancer.Balancer
	cfg     serviceconfig.LoadBalancingConfig
	lastErr error // of the last list
}

// drive runs f in a bubble of fake time with a new policy.
func drive(t *testing.T, config string, f func(t *testing.T, d *driver)) {
	t.Helper()
	driveWith(t, nil, config, f)
}

func driveWith(t *testing.T, recorder estats.MetricsRecorder, config string, f func(t *testing.T, d *driver)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := &driver{t: t, channel: &fakeChannel{t: t, recorder: recorder}}
		d.lb = balancer.Get(Name).Build(d.channel, balancer.BuildOptions{})
		d.lb.(*policy).turns.n.Store(0) // far from where it wraps: tests count exactly
		d.configure(config)
		f(t, d)
		d.close()
	})
}

func (d *driver) configure(js string) {
	d.t.Helper()
	cfg, err := builder{}.ParseConfig([]byte(js))
	require.NoError(d.t, err)
	d.cfg = cfg
}

func (d *driver) close() {
	d.lb.Close()
	synctest.Wait()
	d.channel.mu.Lock()
	d.channel.closed = true
	for _, c := range d.channel.conns {
		if !c.shut {
			d.t.Errorf("%v outlives its policy", c)
		}
	}
	d.channel.mu.Unlock()
	time.Sleep(time.Hour) // nothing is left that ticks
	synctest.Wait()
}

func (d *driver) list(eps ...resolver.Endpoint) {
	d.lastErr = d.lb.UpdateClientConnState(balancer.ClientConnState{
		ResolverState:  resolver.State{Endpoints: eps},
		BalancerConfig: d.cfg,
	})
	synctest.Wait()
}

// at returns an endpoint with that id and address.
func at(id, addr string, change ...func(*endpointsmeta.Meta)) resolver.Endpoint {
	m := endpointsmeta.Meta{ID: id}
	for _, f := range change {
		f(&m)
	}
	return endpointsmeta.Set(resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr}}}, m)
}

// ep returns an endpoint whose id is its address.
func ep(id string, change ...func(*endpointsmeta.Meta)) resolver.Endpoint {
	return at(id, id, change...)
}

func draining(m *endpointsmeta.Meta)            { m.Draining = true }
func weighs(w uint32) func(*endpointsmeta.Meta) { return func(m *endpointsmeta.Meta) { m.Weight = w } }
func inZone(z string) func(*endpointsmeta.Meta) { return func(m *endpointsmeta.Meta) { m.Zone = z } }
func incarnation(inc int64) func(*endpointsmeta.Meta) {
	return func(m *endpointsmeta.Meta) { m.Incarnation = inc }
}

// open returns the connection to addr that is not shut down, nil if none.
func (d *driver) open(addr string) *fakeConn {
	d.channel.mu.Lock()
	defer d.channel.mu.Unlock()
	for _, c := range d.channel.conns {
		if c.addr == addr && !c.shut {
			return c
		}
	}
	return nil
}

func (d *driver) conn(addr string) *fakeConn {
	d.t.Helper()
	c := d.open(addr)
	require.NotNil(d.t, c, "no connection to %s", addr)
	return c
}

// deliver tells what became of a connection.
func (d *driver) deliver(c *fakeConn, s connectivity.State) {
	d.channel.mu.Lock()
	if s == connectivity.Idle || s == connectivity.Connecting {
		c.wanted = false
	}
	if c.state == connectivity.Ready {
		c.health = nil // gRPC drops it with the connection
	}
	c.state = s
	d.channel.mu.Unlock()
	var err error
	if s == connectivity.TransientFailure {
		err = errors.New("refused by " + c.addr)
	}
	c.listener(balancer.SubConnState{ConnectivityState: s, ConnectionError: err})
	synctest.Wait()
}

// tell reports the health of a READY connection.
func (d *driver) tell(c *fakeConn, s connectivity.State) {
	d.t.Helper()
	d.channel.mu.Lock()
	health := c.health
	d.channel.mu.Unlock()
	require.NotNil(d.t, health, "no health listener on %v", c)
	var err error
	if s == connectivity.TransientFailure {
		err = errors.New("not serving: " + c.addr)
	}
	health(balancer.SubConnState{ConnectivityState: s, ConnectionError: err})
	synctest.Wait()
}

// up makes the connections to these addresses READY.
func (d *driver) up(addrs ...string) {
	d.t.Helper()
	for _, addr := range addrs {
		c := d.conn(addr)
		require.True(d.t, c.wanted, "nobody wants to connect to %s", addr)
		d.deliver(c, connectivity.Connecting)
		d.deliver(c, connectivity.Ready)
		d.tell(c, connectivity.Ready)
	}
}

func (d *driver) down(addr string) { d.deliver(d.conn(addr), connectivity.Idle) }

func (d *driver) published() int {
	d.channel.mu.Lock()
	defer d.channel.mu.Unlock()
	return d.channel.published
}

func (d *driver) made() int {
	d.channel.mu.Lock()
	defer d.channel.mu.Unlock()
	return len(d.channel.conns)
}

func (d *driver) current() balancer.State {
	d.channel.mu.Lock()
	defer d.channel.mu.Unlock()
	return d.channel.state
}

const (
	queued = "queued"
	failed = "failed"
)

// pick returns where a call with ctx goes: a connection, queued or failed.
func (d *driver) pick(ctx context.Context) string {
	d.t.Helper()
	r, err := d.current().Picker.Pick(balancer.PickInfo{Ctx: ctx, FullMethodName: "/s/m"})
	switch {
	case err == nil:
		require.Nil(d.t, r.Done)
		return r.SubConn.(*fakeConn).String()
	case err == balancer.ErrNoSubConnAvailable:
		return queued
	default:
		_, isStatus := status.FromError(err)
		require.False(d.t, isStatus, "a status would end wait-for-ready calls: %v", err)
		require.NotErrorIs(d.t, err, balancer.ErrNoSubConnAvailable)
		return failed
	}
}

// server is pick without the serial number.
func (d *driver) server(ctx context.Context) string {
	d.t.Helper()
	addr, _, _ := strings.Cut(d.pick(ctx), "#")
	return addr
}

// spread returns where n calls without affinity go.
func (d *driver) spread(n int) map[string]int {
	d.t.Helper()
	got := make(map[string]int)
	for range n {
		got[d.server(context.Background())]++
	}
	return got
}

// home returns a key whose home, with all of these READY, is id.
func keyAtHomeOn(id string, among ...string) string {
	var members []member
	for _, m := range among {
		members = append(members, member{m, 1})
	}
	ms := of(members)
	for i := 0; ; i++ {
		if key := fmt.Sprint("key-", i); members[ms.home(slotOf(callctx.Hash(key)))].id == id {
			return key
		}
	}
}

var (
	bg     = context.Background()
	with   = func(id string) context.Context { return affinity.With(bg, id) }
	must   = func(id string) context.Context { return affinity.Require(bg, id) }
	key    = func(k string) context.Context { return affinity.WithKey(bg, k) }
	window = DefaultReconnectWindow
)

func TestOfTwoServersWithOneIDTheHigherIncarnationWins(t *testing.T) {
	for _, eps := range [][]resolver.Endpoint{
		{at("a", "1", incarnation(7)), at("a", "2", incarnation(9)), ep("b")},
		{ep("b"), at("a", "2", incarnation(9)), at("a", "1", incarnation(7))},
	} {
		drive(t, `{}`, func(t *testing.T, d *driver) {
			d.list(eps...)
			require.Nil(t, d.open("1"))
			d.up("2", "b")
			require.Equal(t, "2", d.server(must("a")))
			require.Equal(t, map[string]int{"2": 5, "b": 5}, d.spread(10))
		})
	}
}

func TestANewIncarnationElsewhereTakesOver(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(at("a", "1", incarnation(7)), ep("b"))
		d.up("1", "b")
		d.list(at("a", "1", incarnation(7)), at("a", "2", incarnation(9)), ep("b"))
		require.Nil(t, d.open("1"))
		require.Equal(t, queued, d.pick(must("a")))
		d.up("2")
		require.Equal(t, "2", d.server(must("a")))
	})
}

func TestOneAddressUnderTwoIDsIsOneConnection(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(at("z", "1"), at("a", "1"), at("m", "1"))
		require.Equal(t, 1, d.made())
		d.up("1")
		require.Equal(t, "1", d.server(must("a")))
	})
}

func TestAnEndpointWithoutAnAddressIsIgnored(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(resolver.Endpoint{}, ep("a"), endpointsmeta.Set(resolver.Endpoint{}, endpointsmeta.Meta{ID: "b"}))
		d.up("a")
		require.Equal(t, 1, d.made())
		require.Equal(t, "a", d.server(bg))
	})
}

func TestNothingIsPublishedAfterClose(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		d.up("a")
		d.deliver(d.conn("b"), connectivity.Connecting)
		a, b := d.conn("a"), d.conn("b")
		health := a.health
		d.lb.Close()
		d.channel.mu.Lock()
		d.channel.closed = true // from here on UpdateState and NewSubConn fail the test
		d.channel.mu.Unlock()
		a.listener(balancer.SubConnState{ConnectivityState: connectivity.Idle})
		health(balancer.SubConnState{ConnectivityState: connectivity.TransientFailure})
		b.listener(balancer.SubConnState{ConnectivityState: connectivity.Ready})
		d.lb.ResolverError(errors.New("late"))
		d.lb.ExitIdle()
		synctest.Wait()
		time.Sleep(time.Hour)
	})
}

func TestAResolverErrorBeforeAnyListFailsCallsWithIt(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.lb.ResolverError(errors.New("etcd is out of reach"))
		s := d.current()
		require.Equal(t, connectivity.TransientFailure, s.ConnectivityState)
		_, err := s.Picker.Pick(balancer.PickInfo{Ctx: bg})
		require.ErrorContains(t, err, "etcd is out of reach")
		require.Equal(t, failed, d.pick(key("k")))
		require.Equal(t, queued, d.pick(must("a")), "a list may still come that has it")

		d.list(ep("a"))
		d.up("a")
		require.Equal(t, "a", d.server(bg))
	})
}

func TestAResolverErrorAfterAListChangesNothing(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		d.up("a", "b")
		before := d.published()
		d.lb.ResolverError(errors.New("etcd is out of reach"))
		synctest.Wait()
		require.Equal(t, before, d.published())
		require.Equal(t, map[string]int{"a": 2, "b": 2}, d.spread(4))
	})
}

func TestAnEmptyListIsReportedBack(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list()
		require.ErrorIs(t, d.lastErr, balancer.ErrBadResolverState)
		_, err := d.current().Picker.Pick(balancer.PickInfo{Ctx: bg})
		require.ErrorContains(t, err, "empty")
	})
}

func TestAChildThatWasReplacedIsNotHeard(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(at("a", "1"), ep("b"))
		d.up("1", "b")
		stale := d.lb.(*policy).server("a").child
		report := balancer.State{ConnectivityState: stale.state(), Picker: stale.picker}
		d.list(at("a", "2"), ep("b"))
		published := d.published()
		stale.UpdateState(report)
		require.Equal(t, published, d.published())
		require.Equal(t, queued, d.pick(must("a")))
		require.Equal(t, map[string]int{"b": 2}, d.spread(2))
	})
}

type foreignConfig struct {
	serviceconfig.LoadBalancingConfig
}

func TestAForeignConfigIsRefused(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.cfg = foreignConfig{}
		d.list(ep("a"))
		require.ErrorIs(t, d.lastErr, balancer.ErrBadResolverState)
		require.ErrorContains(t, d.lastErr, "foreignConfig")
		require.Zero(t, d.made())

		d.cfg = nil
		d.list(ep("a"))
		require.NoError(t, d.lastErr, "no config means the defaults")
		d.up("a")
		require.Equal(t, "a", d.server(bg))
	})
}

func TestTheSameListAgainIsNoWork(t *testing.T) {
	list := func() []resolver.Endpoint {
		return []resolver.Endpoint{ep("a", weighs(3), inZone("z")), ep("b", draining), ep("c")}
	}
	drive(t, `{}`, func(t *testing.T, d *driver) {
		eps := list()
		d.list(eps...)
		d.up("a", "b")
		published, made, applied := d.published(), d.made(), d.lb.(*policy).update
		d.list(eps...)
		d.list(list()...) // equal, but not the same pointers
		d.configure(`{}`)
		d.list(list()...) // a config parsed anew
		require.Equal(t, applied, d.lb.(*policy).update, "no server was looked at")
		require.Equal(t, published, d.published())
		require.Equal(t, made, d.made())
		d.list(eps[2], eps[0], eps[1])
		require.Equal(t, published, d.published(), "the order of a list says nothing")
		require.Equal(t, made, d.made())
	})
}

func TestChangedAttributesArePublishedAndReconnectNothing(t *testing.T) {
	for name, change := range map[string]func(*endpointsmeta.Meta){
		"draining": draining, "weight": weighs(5), "zone": inZone("other"),
	} {
		t.Run(name, func(t *testing.T) {
			drive(t, `{"zone": "here"}`, func(t *testing.T, d *driver) {
				here := inZone("here")
				d.list(ep("a", here), ep("b", here))
				d.up("a", "b")
				require.Equal(t, map[string]int{"a": 6, "b": 6}, d.spread(12))
				published, made := d.published(), d.made()
				d.list(ep("a", here, change), ep("b", here))
				require.Greater(t, d.published(), published)
				require.Equal(t, made, d.made())
				require.NotEqual(t, map[string]int{"a": 6, "b": 6}, d.spread(12))
				require.Equal(t, "a", d.server(must("a")))
				d.list(ep("a", here), ep("b", here))
				require.Equal(t, map[string]int{"a": 6, "b": 6}, d.spread(12))
				require.Equal(t, made, d.made())
			})
		})
	}
}

// wrapped stands for what gRPC or a wrapper may put around pick_first's picker.
type wrapped struct {
	balancer.Picker
	done func(balancer.DoneInfo)
	md   metadata.MD
}

func (w wrapped) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	r, err := w.Picker.Pick(info)
	r.Done, r.Metadata = w.done, w.md
	return r, err
}

func TestAPickerThatAddsToAPickIsDelegatedTo(t *testing.T) {
	done := 0
	for name, w := range map[string]wrapped{
		"Done":     {done: func(balancer.DoneInfo) { done++ }},
		"Metadata": {md: metadata.Pairs("token", "t")},
	} {
		t.Run(name, func(t *testing.T) {
			drive(t, `{}`, func(t *testing.T, d *driver) {
				d.list(ep("a"))
				d.up("a")
				s := d.lb.(*policy).server("a")
				w.Picker = s.child.picker
				s.child.UpdateState(balancer.State{ConnectivityState: connectivity.Ready, Picker: w})
				for _, ctx := range []context.Context{bg, must("a"), with("a"), key("k")} {
					r, err := d.current().Picker.Pick(balancer.PickInfo{Ctx: ctx})
					require.NoError(t, err)
					require.Equal(t, d.conn("a"), r.SubConn)
					require.Equal(t, w.md, r.Metadata)
					require.Equal(t, w.done == nil, r.Done == nil)
				}
				// Such pickers need not be comparable: a report again must not panic.
				s.child.UpdateState(balancer.State{ConnectivityState: connectivity.Ready, Picker: w})
			})
		})
	}
	_ = done
}

func TestAnAttemptThatAWrapperHoldsIsNotedOnceItGoes(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"))
		d.up("a")
		s := d.lb.(*policy).server("a")
		full := true
		s.child.UpdateState(balancer.State{ConnectivityState: connectivity.Ready, Picker: holding{s.child.picker, &full}})
		r := new(affinity.Route)
		ctx := affinity.Observe(must("a"), r)
		require.Equal(t, queued, d.pick(ctx))
		require.Zero(t, r.Attempts())
		full = false
		require.Equal(t, "a", d.server(ctx))
		require.Equal(t, "id a a, waited", r.String())
		require.Equal(t, 1, r.Attempts())
	})
}

// holding is a picker that sends nothing while it is full.
type holding struct {
	balancer.Picker
	full *bool
}

func (h holding) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	if *h.full {
		return balancer.PickResult{}, balancer.ErrNoSubConnAvailable
	}
	return h.Picker.Pick(info)
}

func TestHealth(t *testing.T) {
	k := keyAtHomeOn("a", "a", "b")
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		d.up("b")
		a := d.conn("a")
		d.deliver(a, connectivity.Connecting)
		d.deliver(a, connectivity.Ready)
		require.NotNil(t, a.health, "pick_first was asked for health")
		require.Equal(t, queued, d.pick(must("a")), "connected, but its health is not known yet")
		require.Equal(t, map[string]int{"b": 4}, d.spread(4))

		d.tell(a, connectivity.Connecting) // the watch has begun
		require.Equal(t, queued, d.pick(must("a")))
		require.Equal(t, queued, d.pick(key(k)))

		d.tell(a, connectivity.Ready)
		require.Equal(t, "a", d.server(must("a")))
		require.Equal(t, "a", d.server(key(k)))
		require.Equal(t, map[string]int{"a": 2, "b": 2}, d.spread(4))

		d.tell(a, connectivity.TransientFailure) // NOT_SERVING: as if it drained
		require.Equal(t, "a", d.server(must("a")))
		require.Equal(t, "a", d.server(with("a")))
		require.Equal(t, "b", d.server(key(k)))
		require.Equal(t, map[string]int{"b": 4}, d.spread(4))

		d.tell(a, connectivity.Connecting) // its watch broke: nothing new is known
		require.Equal(t, "a", d.server(must("a")))
		require.Equal(t, "b", d.server(key(k)))
		require.Equal(t, map[string]int{"b": 4}, d.spread(4))

		d.tell(a, connectivity.Ready)
		require.Equal(t, "a", d.server(key(k)))
		require.Equal(t, map[string]int{"a": 2, "b": 2}, d.spread(4))

		d.tell(a, connectivity.Connecting) // and while it was healthy
		require.Equal(t, "a", d.server(must("a")))
		require.Equal(t, "a", d.server(key(k)))

		d.deliver(a, connectivity.Idle)
		require.Equal(t, queued, d.pick(must("a")))
		time.Sleep(window)
		synctest.Wait()
		require.Equal(t, failed, d.pick(must("a")))
		require.Equal(t, "b", d.server(with("a")))
	})
}

func TestAServerIsLostWithItsConnectionWhateverItsHealthWas(t *testing.T) {
	for _, health := range []connectivity.State{connectivity.Ready, connectivity.TransientFailure, connectivity.Connecting} {
		drive(t, `{}`, func(t *testing.T, d *driver) {
			d.list(ep("a"), ep("b"))
			d.up("a", "b")
			d.tell(d.conn("a"), health)
			d.down("a")
			require.Equal(t, queued, d.pick(must("a")), health)
			require.Equal(t, map[string]int{"b": 2}, d.spread(2))
		})
	}
}

func TestASubsetBoundsCallsWithoutAffinity(t *testing.T) {
	var eps []resolver.Endpoint
	var all []string
	for i := range 10 {
		id := fmt.Sprintf("s%d", i)
		eps, all = append(eps, ep(id)), append(all, id)
	}
	seen := map[string]bool{}
	for range 20 { // twenty channels
		drive(t, `{"subsetSize": 3}`, func(t *testing.T, d *driver) {
			d.list(eps...)
			d.up(all...)
			got := d.spread(30)
			require.Len(t, got, 3)
			for id, n := range got {
				require.Equal(t, 10, n)
				seen[id] = true
			}
			for _, id := range all {
				require.Equal(t, id, d.server(must(id)), "ids reach every server")
				require.Equal(t, id, d.server(key(keyAtHomeOn(id, all...))), "and so do keys")
			}
			// A member drains: one other takes its place.
			var gone string
			for id := range got {
				gone = id
			}
			changed := slices.Clone(eps)
			changed[slices.Index(all, gone)] = ep(gone, draining)
			d.list(changed...)
			now := d.spread(30)
			require.Len(t, now, 3)
			require.NotContains(t, now, gone)
			kept := 0
			for id := range now {
				if got[id] > 0 {
					kept++
				}
			}
			require.Equal(t, 2, kept)
		})
	}
	require.Len(t, seen, len(all), "channels choose differently")
}

func TestLazyConnectsTheSubsetAndNoMore(t *testing.T) {
	drive(t, `{"connect": "LAZY", "subsetSize": 2}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"), ep("c"), ep("d"), ep("e"))
		synctest.Wait()
		require.Equal(t, 2, d.made())
		require.True(t, d.channel.conns[0].wanted && d.channel.conns[1].wanted)
	})
}

func TestZoneSpill(t *testing.T) {
	drive(t, `{"zone": "here"}`, func(t *testing.T, d *driver) {
		d.list(ep("a", inZone("here")), ep("b", inZone("there")), ep("c"))
		require.Equal(t, queued, d.pick(bg))
		d.up("b")
		require.Equal(t, map[string]int{"b": 4}, d.spread(4), "rather another zone than a wait")
		d.up("a", "c")
		require.Equal(t, map[string]int{"a": 4}, d.spread(4))
		require.Equal(t, "b", d.server(must("b")), "zones do not bind ids")
		d.down("a")
		require.Equal(t, map[string]int{"b": 2, "c": 2}, d.spread(4))
		d.up("a")
		d.list(ep("a", inZone("here"), draining), ep("b", inZone("there")), ep("c"))
		require.Equal(t, map[string]int{"b": 2, "c": 2}, d.spread(4))
	})
}

func TestTheZoneCanChangeAtRunTime(t *testing.T) {
	eps := []resolver.Endpoint{ep("a", inZone("x")), ep("b", inZone("y"))}
	drive(t, `{"zone": "x"}`, func(t *testing.T, d *driver) {
		d.list(eps...)
		d.up("a", "b")
		require.Equal(t, map[string]int{"a": 4}, d.spread(4))
		d.configure(`{"zone": "y"}`)
		d.list(eps...)
		require.Equal(t, map[string]int{"b": 4}, d.spread(4))
		d.configure(`{}`)
		d.list(eps...)
		require.Equal(t, map[string]int{"a": 2, "b": 2}, d.spread(4))
		require.Equal(t, 2, d.made(), "no connection was made again")
	})
}

func TestTheWindowCanChangeAtRunTime(t *testing.T) {
	eps := []resolver.Endpoint{ep("a"), ep("b")}
	drive(t, `{"reconnectWindow": "1h"}`, func(t *testing.T, d *driver) {
		d.list(eps...)
		d.up("a", "b")
		d.down("a")
		time.Sleep(time.Minute)
		require.Equal(t, queued, d.pick(with("a")))
		d.configure(`{"reconnectWindow": "2m"}`)
		d.list(eps...)
		require.Equal(t, queued, d.pick(with("a")))
		published := d.published()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Greater(t, d.published(), published, "what was queued has to be woken")
		require.Equal(t, "b", d.server(with("a")))
		d.up("a")
		d.down("a")
		require.Equal(t, queued, d.pick(with("a")))
		d.configure(`{"reconnectWindow": "0s"}`)
		d.list(eps...)
		require.Equal(t, "b", d.server(with("a")))
	})
}

func TestHeadersCanChangeAtRunTime(t *testing.T) {
	eps := []resolver.Endpoint{ep("a"), ep("b")}
	ctx := metadata.AppendToOutgoingContext(bg, "x-server", "b")
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(eps...)
		d.up("a", "b")
		d.configure(`{"idHeader": "X-Server"}`)
		d.list(eps...)
		for range 4 {
			require.Equal(t, "b", d.server(ctx))
		}
	})
}

func TestLazyBecomesEagerAtRunTime(t *testing.T) {
	eps := []resolver.Endpoint{ep("a"), ep("b")}
	drive(t, `{"connect": "LAZY"}`, func(t *testing.T, d *driver) {
		d.list(eps...)
		require.Zero(t, d.made())
		require.Equal(t, queued, d.pick(must("a")))
		synctest.Wait()
		d.up("a")
		d.down("a") // idle again
		d.configure(`{}`)
		d.list(eps...)
		d.up("a", "b")
		require.Equal(t, map[string]int{"a": 2, "b": 2}, d.spread(4))
	})
}

func TestLazyKeepsAnIdleServerIdle(t *testing.T) {
	drive(t, `{"connect": "LAZY"}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		require.Equal(t, queued, d.pick(must("a")))
		synctest.Wait()
		d.up("a")
		d.down("a")
		require.False(t, d.conn("a").wanted)
		time.Sleep(time.Hour)
		require.Equal(t, queued, d.pick(with("a")), "idle is no outage")
		synctest.Wait()
		d.up("a")
		require.Equal(t, "a", d.server(with("a")))
		require.Nil(t, d.open("b"))
	})
}

// A server that restarts elsewhere under its id, or leaves and returns, is idle
// under LAZY: the calls that belong to it have to connect it.
func TestLazyConnectsAServerThatReturns(t *testing.T) {
	for name, leave := range map[string]func(d *driver){
		"elsewhere":         func(d *driver) { d.list(at("a", "2"), ep("b")) },
		"after it had left": func(d *driver) { d.down("1"); d.list(ep("b")); d.list(at("a", "2"), ep("b")) },
		"after its goodbye": func(d *driver) {
			d.list(at("a", "1", draining), ep("b"))
			d.list(ep("b"))
			d.list(at("a", "2"), ep("b"))
		},
		"after its window":   func(d *driver) { d.down("1"); d.list(ep("b")); time.Sleep(time.Minute); d.list(at("a", "2"), ep("b")) },
		"at the old address": func(d *driver) { d.down("1"); d.list(ep("b")); d.list(at("a", "1"), ep("b")) },
	} {
		for kind, ctx := range map[string]context.Context{
			"required": must("a"), "preferred": with("a"), "key": key(keyAtHomeOn("a", "a", "b")),
		} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				drive(t, `{"connect": "LAZY"}`, func(t *testing.T, d *driver) {
					d.list(at("a", "1"), ep("b"))
					d.pick(must("a"))
					d.pick(must("b"))
					synctest.Wait()
					d.up("1", "b")
					leave(d)
					synctest.Wait()
					d.pick(ctx)
					synctest.Wait()
					addr := "2"
					if name == "at the old address" {
						addr = "1"
					}
					c := d.open(addr)
					require.NotNil(t, c, "nobody connects a")
					require.True(t, c.wanted)
				})
			})
		}
	}
}

// Servers kept under one grace, and then under another, leave each in its time.
func TestGracesEndEachInItsTime(t *testing.T) {
	t.Run("kept, listed and kept again", func(t *testing.T) {
		drive(t, `{"absentGrace": "30s"}`, func(t *testing.T, d *driver) {
			a, b, c, x := ep("a"), ep("b"), ep("c"), ep("x")
			d.list(a, b, c, x)
			d.up("a", "b", "c", "x")
			d.list(a, b, x) // c until 30s
			time.Sleep(time.Second)
			d.list(b, x) // a until 31s
			time.Sleep(time.Second)
			d.list(a, b, x)
			time.Sleep(time.Second)
			d.list(a, x) // b until 33s
			time.Sleep(time.Second)
			d.list(x) // a until 34s
			time.Sleep(29 * time.Second)
			synctest.Wait() // it is 33s
			require.NotNil(t, d.open("a"))
			require.Nil(t, d.open("c"))
			require.Nil(t, d.open("b"), "b has had its 30s")
			time.Sleep(time.Second)
			synctest.Wait()
			require.Nil(t, d.open("a"))
		})
	})
	t.Run("the grace was cut", func(t *testing.T) {
		drive(t, `{"absentGrace": "1h"}`, func(t *testing.T, d *driver) {
			d.list(ep("a"), ep("b"), ep("x"))
			d.up("a", "b", "x")
			d.list(ep("b"), ep("x"))
			d.configure(`{"absentGrace": "10s"}`)
			d.list(ep("x"))
			time.Sleep(10 * time.Second)
			synctest.Wait()
			require.Nil(t, d.open("b"), "b has had its 10s")
		})
	})
}

// A server that left, whose window has run out, and that is listed again has to
// be met the same way whether or not another list came in between.
func TestAReturnAfterTheWindowDoesNotDependOnListsInBetween(t *testing.T) {
	answers := func(between ...resolver.Endpoint) (got []string) {
		drive(t, `{}`, func(t *testing.T, d *driver) {
			d.list(ep("a"), ep("b"))
			d.up("a", "b")
			d.down("a")
			d.list(ep("b"))
			time.Sleep(time.Minute)
			synctest.Wait()
			if between != nil {
				d.list(between...)
			}
			d.list(ep("a"), ep("b"))
			got = []string{d.pick(must("a")), d.server(with("a")), d.server(key(keyAtHomeOn("a", "a", "b")))}
		})
		return got
	}
	require.Equal(t, answers(), answers(ep("b", weighs(2))))
}

// The reference model: section 4 of the design, restated without a thought for
// cost. It learns of lists, of what becomes of connections, and of time, and
// says where calls go.
type model struct {
	window, grace time.Duration
	lazy          bool
	zone          string

	first   time.Time
	settled bool // ids never listed are waited for no longer
	servers map[string]*modelServer
}

type modelServer struct {
	id        string
	meta      endpointsmeta.Meta
	addr      string
	listed    bool
	keptSince time.Time // zero if it is not kept

	conn       *fakeConn          // connected, and its health was told
	lb         connectivity.State // what pick_first shows; Shutdown if there is none
	notServing bool

	away  time.Time // since when its outage lasts; zero if there is none
	tried bool      // an attempt to this address has ended
	lost  bool      // the outage has lasted for the window
	bye   bool      // it left after draining
}

func (s *modelServer) known() bool  { return s.listed || s.kept() }
func (s *modelServer) kept() bool   { return !s.keptSince.IsZero() }
func (s *modelServer) drains() bool { return s.meta.Draining || s.notServing }

func (s *modelServer) weight() int { return max(int(s.meta.Weight), 1) }

func (m *model) leave(s *modelServer, now time.Time) {
	s.listed, s.keptSince = false, time.Time{}
	s.conn, s.notServing, s.lb, s.tried = nil, false, connectivity.Shutdown, true
	if s.meta.Draining {
		s.bye, s.away, s.lost = true, time.Time{}, false
	} else {
		m.begin(s, now)
	}
}

func (m *model) begin(s *modelServer, now time.Time) {
	if s.away.IsZero() {
		s.away = now
	}
}

// start is a new connection to s: at once, or with its first call.
func (m *model) start(s *modelServer, now time.Time) {
	s.conn, s.notServing, s.tried = nil, false, false
	if m.lazy {
		s.lb, s.away, s.lost = connectivity.Idle, time.Time{}, false
		return
	}
	s.lb = connectivity.Connecting
	m.begin(s, now)
}

func (m *model) list(eps []resolver.Endpoint, now time.Time) {
	if m.first.IsZero() {
		m.first = now
	}
	want := make(map[string]resolver.Endpoint)
	for _, ep := range eps {
		want[endpointsmeta.FromEndpoint(ep).ID] = ep
	}
	for id, s := range m.servers {
		if _, ok := want[id]; ok {
			continue
		}
		switch {
		case s.listed && s.conn != nil && !s.meta.Draining && m.grace > 0:
			s.listed, s.keptSince = false, now
		case s.listed:
			m.leave(s, now)
		}
	}
	for id, ep := range want {
		s := m.servers[id]
		// Who has left and is waited for no longer returns as one who is new.
		if s == nil || (!s.known() && (s.bye || s.lost)) {
			s = &modelServer{id: id, lb: connectivity.Shutdown}
			m.servers[id] = s
		}
		s.listed, s.keptSince, s.meta = true, time.Time{}, endpointsmeta.FromEndpoint(ep)
		if addr := ep.Addresses[0].Addr; s.lb == connectivity.Shutdown || s.addr != addr {
			s.addr = addr
			m.start(s, now)
		}
	}
	m.settle(now)
}

// settle is what time does.
func (m *model) settle(now time.Time) {
	m.settled = m.settled || !now.Before(m.first.Add(m.window))
	for _, s := range m.servers {
		if s.kept() && !now.Before(s.keptSince.Add(m.grace)) {
			m.leave(s, now)
		}
		if !s.away.IsZero() {
			over := !now.Before(s.away.Add(m.window))
			if m.window == 0 {
				over = s.tried
			}
			s.lost = s.lost || over
		}
	}
}

// next is when settle, or the end of the first window, has something to do.
func (m *model) next(now time.Time) (next time.Time) {
	for _, s := range m.servers {
		for _, at := range []time.Time{s.keptSince.Add(m.grace), s.away.Add(m.window), m.first.Add(m.window)} {
			if at.After(now) && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
	}
	return next
}

// became takes in what became of the connection c.
func (m *model) became(c *fakeConn, was, is connectivity.State, now time.Time) {
	for _, s := range m.servers {
		if s.addr != c.addr || s.lb == connectivity.Shutdown {
			continue
		}
		switch {
		case is == connectivity.Ready:
			s.lb = connectivity.Connecting // its health comes next
		case is == connectivity.TransientFailure:
			s.lb, s.tried = is, true
		case is == connectivity.Connecting:
			m.begin(s, now)
		case was == connectivity.Ready:
			s.conn, s.notServing = nil, false
			switch {
			case s.kept():
				m.leave(s, now)
			case m.lazy && !s.lost && (s.away.IsZero() || m.window == 0):
				s.lb, s.away, s.tried = connectivity.Idle, time.Time{}, false
			default:
				s.lb = connectivity.Connecting
				m.begin(s, now)
			}
		}
	}
	m.settle(now)
}

func (m *model) told(c *fakeConn, health connectivity.State, now time.Time) {
	for _, s := range m.servers {
		if s.addr != c.addr || s.lb == connectivity.Shutdown {
			continue
		}
		s.lb = health
		if health != connectivity.Connecting {
			s.conn, s.notServing = c, health == connectivity.TransientFailure
			s.away, s.lost, s.tried = time.Time{}, false, true
		}
	}
	m.settle(now)
}

// asked takes in that somebody wants to connect s.
func (m *model) asked(s *modelServer, now time.Time) {
	s.lb = connectivity.Connecting
	m.begin(s, now)
	m.settle(now)
}

func (m *model) allDrain() bool {
	for _, s := range m.servers {
		if s.known() && !s.drains() {
			return false
		}
	}
	return true
}

// idle reports whether a call for s connects it.
func (m *model) idle(s *modelServer) bool {
	return m.lazy && s.lb == connectivity.Idle && s.away.IsZero()
}

// outOfReach reports whether calls are not to wait for s.
func (s *modelServer) outOfReach() bool {
	return s.conn == nil && (s.bye || s.lost || (!s.known() && s.away.IsZero()))
}

// byID is the answer for an id, and the idle server that it connects, if any.
func (m *model) byID(id, key string, required bool) (string, *modelServer) {
	s := m.servers[id]
	switch {
	case s == nil && !m.settled:
		return queued, nil
	case s == nil || s.outOfReach():
		if required {
			return failed, nil
		}
		if key == "" {
			key = id
		}
		return m.byKey(key)
	}
	return m.use(s)
}

func (m *model) byKey(key string) (string, *modelServer) {
	var home *modelServer
	least := math.Inf(1)
	for _, s := range m.servers {
		if !s.known() || s.outOfReach() || (s.drains() && !m.allDrain()) {
			continue
		}
		d := draw(slotOf(callctx.Hash(key)), callctx.Hash(s.id))
		if cost := (64 - math.Log2(float64(d))) / float64(s.weight()); cost < least {
			home, least = s, cost
		}
	}
	if home == nil {
		return failed, nil
	}
	return m.use(home)
}

func (m *model) use(s *modelServer) (string, *modelServer) {
	switch {
	case s.conn != nil:
		return s.conn.String(), nil
	case m.idle(s):
		return queued, s
	}
	return queued, nil
}

// nothing is the answer for calls without affinity: by how much each connection
// is used, or queued, or failed.
func (m *model) nothing() map[string]int {
	for tier := range 3 {
		got := make(map[string]int)
		for _, s := range m.servers {
			at := 1
			switch {
			case s.kept():
				at = 2
			case !s.listed || (s.meta.Draining && !m.allDrain()):
				continue
			case m.zone == "" || s.meta.Zone == m.zone:
				at = 0
			}
			if at == tier && s.lb == connectivity.Ready {
				got[s.conn.String()] = s.weight()
			}
		}
		if len(got) > 0 {
			return got
		}
	}
	for _, s := range m.servers {
		if s.listed && (!s.meta.Draining || m.allDrain()) && (s.lb == connectivity.Connecting || s.lb == connectivity.Idle) {
			return map[string]int{queued: 1}
		}
	}
	return map[string]int{failed: 1}
}

// TestThePolicyIsTheModel lets random things happen, and after each of them
// compares the answers of the newest picker with the model's. It also requires
// that whoever was told to wait, or was sent to what is no longer READY, gets a
// new picker when that changes: gRPC asks again only then.
func TestThePolicyIsTheModel(t *testing.T) {
	runs := 150
	if testing.Short() || raceEnabled { // a table of 1 MB a step is slow then
		runs = 50
	}
	for _, lazy := range []bool{false, true} {
		t.Run(fmt.Sprintf("lazy=%v", lazy), func(t *testing.T) {
			for seed := range runs {
				takeAWalk(t, uint64(seed), 5+seed, lazy)
			}
		})
	}
}

// FuzzThePolicyIsTheModel goes on where the test ends.
func FuzzThePolicyIsTheModel(f *testing.F) {
	f.Add(uint64(1), uint8(50), false)
	f.Add(uint64(2), uint8(50), true)
	f.Fuzz(func(t *testing.T, seed uint64, steps uint8, lazy bool) { takeAWalk(t, seed, int(steps), lazy) })
}

func takeAWalk(t *testing.T, seed uint64, steps int, lazy bool) {
	t.Helper()
	w := &walk{rnd: rand.New(rand.NewPCG(seed, 17)), steps: steps}
	if seed%2 == 1 { // picks that are counted go another way
		w.recorder = listRecorder{new(metricstest.Recorder)}
	}
	w.logf("seed %d", seed)
	w.run(t, lazy)
}

type walk struct {
	*driver
	recorder estats.MetricsRecorder

	rnd    *rand.Rand
	model  *model
	steps  int
	log    []string
	last   []resolver.Endpoint
	checks bool // servers' health is told apart from their connections

	answers   map[string]string // of the last check
	publishes int               // as of the last check
}

func (w *walk) logf(format string, args ...any) {
	w.log = append(w.log, time.Now().Format("05.000000000 ")+fmt.Sprintf(format, args...))
}

func (w *walk) oneOf(ss ...string) string { return ss[w.rnd.IntN(len(ss))] }

func (w *walk) run(t *testing.T, lazy bool) {
	t.Helper()
	w.checks = w.rnd.IntN(3) == 0
	w.model = &model{
		window: []time.Duration{3 * time.Second, 0}[w.rnd.IntN(4)/3],
		grace:  []time.Duration{5 * time.Second, 0}[w.rnd.IntN(4)/3],
		lazy:   lazy, zone: w.oneOf("", "z1"),
		servers: map[string]*modelServer{},
	}
	w.answers = map[string]string{}
	driveWith(t, w.recorder, w.config(), func(t *testing.T, d *driver) {
		w.driver = d
		defer func() {
			if t.Failed() {
				t.Log("what led to it:\n" + strings.Join(w.log, "\n"))
			}
		}()
		w.logf("%s, checks=%v", w.config(), w.checks)
		w.change()
		for ok := w.check(); ok && w.steps > 0; w.steps-- {
			w.step()
			w.model.settle(time.Now())
			synctest.Wait()
			ok = w.check()
		}
	})
}

func (w *walk) config() string {
	c := Config{ReconnectWindow: w.model.window, AbsentGrace: w.model.grace, Zone: w.model.zone}
	if w.model.window == 0 {
		c.ReconnectWindow = -1
	}
	if w.model.grace == 0 {
		c.AbsentGrace = -1
	}
	if w.model.lazy {
		c.Connect = ConnectLazy
	}
	js, _ := c.MarshalJSON()
	return string(js)
}

func (w *walk) step() {
	switch n := w.rnd.IntN(100); {
	case n < 15:
		w.change()
	case n < 17:
		w.logf("the same list again")
		before := w.published()
		w.list(slices.Clone(w.last)...)
		require.Equal(w.t, before, w.published(), "the same list again is no news")
	case n < 19:
		switch w.rnd.IntN(3) {
		case 0:
			w.model.zone = w.oneOf("", "z1", "z2")
		case 1:
			w.model.grace = time.Duration(w.rnd.IntN(4)) * 2 * time.Second
		default:
			if w.model.window > 0 {
				w.model.window = time.Duration(1+w.rnd.IntN(4)) * time.Second
			}
		}
		w.logf("config %s", w.config())
		w.configure(w.config())
		w.list(w.last...)
	case n < 21:
		w.logf("resolver error")
		w.lb.ResolverError(errors.New("no list"))
	case n < 35:
		w.sleep()
	default:
		w.happen()
	}
}

// change makes a new list of up to six servers, most of them as they were.
func (w *walk) change() {
	var eps []resolver.Endpoint
	var words []string
	for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
		var old *resolver.Endpoint
		for i := range w.last {
			if endpointsmeta.FromEndpoint(w.last[i]).ID == id {
				old = &w.last[i]
			}
		}
		switch n := w.rnd.IntN(10); {
		case old != nil && n < 6:
			eps = append(eps, *old)
		case n < 8:
			m := endpointsmeta.Meta{ID: id, Weight: w.rnd.Uint32N(4), Zone: w.oneOf("", "z1", "z2"), Draining: w.rnd.IntN(4) == 0}
			addr := id + w.oneOf("1", "1", "2")
			if old != nil && w.rnd.IntN(3) > 0 {
				addr = old.Addresses[0].Addr
			}
			eps = append(eps, endpointsmeta.Set(resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr}}}, m))
		default:
			continue
		}
		m := endpointsmeta.FromEndpoint(eps[len(eps)-1])
		words = append(words, fmt.Sprintf("%s@%s*%d/%s draining=%v", id, eps[len(eps)-1].Addresses[0].Addr, m.Weight, m.Zone, m.Draining))
	}
	w.rnd.Shuffle(len(eps), func(i, j int) { eps[i], eps[j] = eps[j], eps[i] })
	w.logf("list %s", strings.Join(words, ", "))
	w.last = eps
	w.model.list(eps, time.Now())
	w.list(eps...)
}

func (w *walk) sleep() {
	d := time.Duration(w.rnd.IntN(1500)) * time.Millisecond
	if next := w.model.next(time.Now()); !next.IsZero() && w.rnd.IntN(2) == 0 {
		d = time.Until(next) - time.Duration(w.rnd.IntN(2)) // at it, or just before
	}
	w.logf("sleep %v", d)
	// In small steps, for what is over at one moment moves what is over next.
	for end := time.Now().Add(d); time.Now().Before(end); w.model.settle(time.Now()) {
		step := time.Until(end)
		if next := w.model.next(time.Now()); !next.IsZero() {
			step = min(step, time.Until(next))
		}
		time.Sleep(step)
	}
	synctest.Wait()
}

// happen lets something become of one connection.
func (w *walk) happen() {
	type event func()
	var events []event
	w.channel.mu.Lock()
	for _, c := range w.channel.conns {
		become := func(is connectivity.State) {
			events = append(events, func() {
				w.logf("%v is %v", c, is)
				was := c.state
				w.model.became(c, was, is, time.Now())
				w.deliver(c, is)
				if is == connectivity.Ready && !w.checks {
					w.model.told(c, connectivity.Ready, time.Now())
					w.tell(c, connectivity.Ready)
				}
			})
		}
		tell := func(health connectivity.State) {
			events = append(events, func() {
				w.logf("health of %v is %v", c, health)
				w.model.told(c, health, time.Now())
				w.tell(c, health)
			})
		}
		switch {
		case c.shut && c.state != connectivity.Shutdown:
			events = append(events, func() {
				w.logf("%v is SHUTDOWN", c)
				w.deliver(c, connectivity.Shutdown)
			})
		case c.shut:
		case c.state == connectivity.Idle && c.wanted:
			become(connectivity.Connecting)
		case c.state == connectivity.Connecting:
			become(connectivity.Ready)
			become(connectivity.Ready)
			become(connectivity.TransientFailure)
		case c.state == connectivity.TransientFailure:
			become(connectivity.Idle)
		case c.state == connectivity.Ready:
			if w.rnd.IntN(3) == 0 {
				become(connectivity.Idle)
			}
			if w.checks {
				tell(connectivity.Ready)
				tell(connectivity.Ready)
				tell(connectivity.TransientFailure)
				tell(connectivity.Connecting)
			}
		}
	}
	w.channel.mu.Unlock()
	if len(events) > 0 {
		events[w.rnd.IntN(len(events))]()
	}
}

// check compares answers. Under LAZY a call can connect a server, so only some
// calls are made then.
func (w *walk) check() bool {
	w.t.Helper()
	skip := func() bool { return w.model.lazy && w.rnd.IntN(4) > 0 }
	published := w.published()
	fresh := make(map[string]string)
	ok := true

	compare := func(what, want, got string) {
		w.t.Helper()
		if want != got {
			w.t.Errorf("%s: want %s, got %s", what, want, got)
			ok = false
		}
		if old, had := w.answers[what]; had && old != got && old != failed && published == w.publishes {
			w.t.Errorf("%s was %s and is %s, but no picker was published", what, old, got)
			ok = false
		}
		fresh[what] = got
	}
	ask := func(what string, ctx context.Context, answer func() (string, *modelServer)) {
		w.t.Helper()
		if skip() {
			return
		}
		want, idle := answer()
		compare(what, want, w.pick(ctx))
		if idle == nil {
			// A call that is observed takes no short cut.
			compare(what, want, w.pick(affinity.Observe(ctx, new(affinity.Route))))
			return
		}
		synctest.Wait()
		w.logf("%s connects %s", what, idle.id)
		if c := w.open(idle.addr); c == nil || !c.wanted {
			w.t.Errorf("%s did not connect the idle server %s", what, idle.id)
			ok = false
		}
		w.model.asked(idle, time.Now())
	}

	for _, id := range []string{"a", "b", "c", "d", "e", "f", "nobody"} {
		ask("require "+id, must(id), func() (string, *modelServer) { return w.model.byID(id, "", true) })
		ask("prefer "+id, with(id), func() (string, *modelServer) { return w.model.byID(id, "", false) })
		ask("prefer "+id+" with a key", with2(id, "k0"), func() (string, *modelServer) { return w.model.byID(id, "k0", false) })
	}
	for i := range 8 {
		k := fmt.Sprint("k", i)
		ask(k, key(k), func() (string, *modelServer) { return w.model.byKey(k) })
	}
	if !skip() {
		want := w.model.nothing()
		sum := 0
		for _, n := range want {
			sum += n
		}
		got := make(map[string]int)
		for range sum {
			got[w.pick(bg)]++
		}
		if !maps.Equal(want, got) {
			w.t.Errorf("no affinity: want %v, got %v", want, got)
			ok = false
		}
		// Who came may come without a picker, who left may not.
		is := strings.Join(slices.Sorted(maps.Keys(got)), " ")
		for gone := range strings.FieldsSeq(w.answers["nothing"]) {
			if got[gone] == 0 && gone != failed && published == w.publishes {
				w.t.Errorf("no affinity was %s and is %s, but no picker was published", w.answers["nothing"], is)
				ok = false
			}
		}
		fresh["nothing"] = is
		synctest.Wait()
		w.wokenAside()
	}
	w.answers, w.publishes = fresh, published
	if w.published() != published { // a call of this check has connected a server
		w.answers, w.publishes = map[string]string{}, w.published()
	}

	// Connections belong to known servers, one to each.
	w.channel.mu.Lock()
	open := map[string]int{}
	for _, c := range w.channel.conns {
		if !c.shut {
			open[c.addr]++
		}
	}
	w.channel.mu.Unlock()
	for _, s := range w.model.servers {
		want := 1
		if !s.known() {
			continue
		}
		if open[s.addr] > want || (!w.model.lazy && open[s.addr] != want) {
			w.t.Errorf("%d connections to %s", open[s.addr], s.addr)
			ok = false
		}
		delete(open, s.addr)
	}
	if len(open) > 0 {
		w.t.Errorf("connections to nobody: %v", open)
		ok = false
	}
	if ready := w.current().ConnectivityState == connectivity.Ready; ready != w.model.anyReady() {
		w.t.Errorf("the channel is READY: %v", ready)
		ok = false
	}
	return ok
}

func (m *model) anyReady() bool {
	for _, s := range m.servers {
		if s.lb == connectivity.Ready {
			return true
		}
	}
	return false
}

func with2(id, k string) context.Context { return affinity.With(affinity.WithKey(bg, k), id) }

// wokenAside finds out which idle server a call without affinity has connected.
func (w *walk) wokenAside() {
	var woken []*modelServer
	for _, s := range w.model.servers {
		if w.model.idle(s) && s.known() {
			if c := w.open(s.addr); c != nil && c.wanted {
				woken = append(woken, s)
			}
		}
	}
	if len(woken) > 1 {
		w.t.Errorf("%d idle servers were connected aside at once", len(woken))
	}
	for _, s := range woken {
		w.logf("a call aside connects %s", s.id)
		w.model.asked(s, time.Now())
	}
}
