package stickybalancer

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/internal/callctx"
)

// truth is what a test knows of its servers, and so where keys live.
type truth map[string]*fact

type fact struct {
	weight   uint32
	draining bool
	lost     bool // its outage has lasted for the window
}

// homes returns who takes keys: the reference.
func (tr truth) homes() (ids []string, ms memberships) {
	var members []member
	for _, all := range []bool{false, true} { // all draining: as if none
		for _, id := range slices.Sorted(maps.Keys(tr)) {
			if f := tr[id]; !f.lost && (!f.draining || all) {
				members = append(members, member{id, f.weight})
			}
		}
		open := slices.ContainsFunc(slices.Collect(maps.Values(tr)), func(f *fact) bool { return !f.draining })
		if open || all {
			break
		}
	}
	for _, m := range members {
		ids = append(ids, m.id)
	}
	return ids, of(members)
}

// weights returns who takes keys, with what weight.
func (tr truth) weights() map[string]uint32 {
	ws := make(map[string]uint32)
	ids, _ := tr.homes()
	for _, id := range ids {
		ws[id] = tr[id].weight
	}
	return ws
}

func (tr truth) endpoints(rnd *rand.Rand) (eps []resolver.Endpoint) {
	for id, f := range tr {
		eps = append(eps, ep(id, func(m *endpointsmeta.Meta) { m.Weight, m.Draining = f.weight, f.draining }))
	}
	rnd.Shuffle(len(eps), func(i, j int) { eps[i], eps[j] = eps[j], eps[i] })
	return eps
}

// calls are picks by many keys, made ready beforehand.
type calls struct {
	slots []uint32
	infos []balancer.PickInfo
}

func callsFor(n int) calls {
	var c calls
	for i := range n {
		k := fmt.Sprint("user:", i)
		c.slots = append(c.slots, slotOf(callctx.Hash(k)))
		c.infos = append(c.infos, balancer.PickInfo{Ctx: key(k)})
	}
	return c
}

// where returns to which address a pick goes.
func where(p balancer.Picker, info balancer.PickInfo) string {
	r, err := p.Pick(info)
	switch err {
	case nil:
		return r.SubConn.(*fakeConn).addr
	case balancer.ErrNoSubConnAvailable:
		return queued
	}
	return failed
}

// keepTables keeps the policy from deriving tables, or lets it again.
func (d *driver) keepTables(keep bool) {
	p := d.lb.(*policy)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.homes.busy = keep
	if !keep {
		p.deriveLocked()
	}
}

func (d *driver) homes() *homes { return d.lb.(*policy).homes.now.Load() }

// TestHomesAreTheReference changes the servers at random and compares where each
// key goes with the reference: before the table follows, while it does, and after.
func TestHomesAreTheReference(t *testing.T) {
	n, steps, seeds := 12_000, 24, 6
	if raceEnabled || testing.Short() {
		n, seeds = 6000, 3
	}
	calls := callsFor(n)
	derived := 0
	for seed := range seeds {
		drive(t, `{}`, func(t *testing.T, d *driver) {
			rnd := rand.New(rand.NewPCG(uint64(seed), 5))
			weighted := seed%2 == 1
			weight := func() uint32 {
				if weighted {
					return 1 + rnd.Uint32N(4)
				}
				return 1
			}
			tr := truth{}
			for i := range 50 {
				tr[fmt.Sprintf("s%d", i)] = &fact{weight: weight()}
			}
			list := func() {
				d.list(tr.endpoints(rnd)...)
				for id := range tr {
					if c := d.open(id); c != nil && c.wanted && !tr[id].lost {
						d.up(id)
					}
				}
			}
			list()

			home := make([]string, n)
			check := func(when string) {
				ids, ms := tr.homes()
				picker := d.current().Picker
				for i, info := range calls.infos {
					want := failed
					if len(ids) > 0 {
						want = ids[ms.home(calls.slots[i])]
					}
					if got := where(picker, info); got != want {
						require.Equal(t, want, got, "%s: key %d", when, i)
					}
					home[i] = want
				}
			}
			pickAll := func() {
				for _, info := range calls.infos {
					d.current().Picker.Pick(info)
				}
			}
			check("at first")
			some := func() (string, *fact) {
				ids := slices.Sorted(maps.Keys(tr))
				id := ids[rnd.IntN(len(ids))]
				return id, tr[id]
			}
			serial := 0
			join := func() { serial++; tr[fmt.Sprintf("t%d-%d", rnd.IntN(10), serial)] = &fact{weight: weight()} }
			leave := func() { // with a goodbye, or it would be kept
				id, f := some()
				if f.lost || len(tr) < 10 {
					return
				}
				f.draining = true
				list()
				delete(tr, id)
			}
			for step := range steps {
				was, before := slices.Clone(home), tr.weights()
				d.keepTables(true)
				what := ""
				switch n := rnd.IntN(20); {
				case n < 4:
					what = "join"
					join()
				case n < 7:
					what = "leave"
					leave()
				case n < 10:
					what = "weight"
					_, f := some()
					f.weight = 1 + rnd.Uint32N(4)
				case n < 13:
					what = "drain"
					_, f := some()
					f.draining = !f.draining
				case n < 16:
					what = "outage"
					id, f := some()
					if f.lost {
						f.lost = false
						d.up(id)
						break
					}
					d.down(id)
					picker := d.current().Picker // inside the window its keys wait for it
					ids, ms := tr.homes()
					for i, info := range calls.infos[:500] {
						want := ids[ms.home(calls.slots[i])]
						if want == id {
							want = queued
						}
						require.Equal(t, want, where(picker, info))
					}
					d.deliver(d.conn(id), connectivity.Connecting)
					d.deliver(d.conn(id), connectivity.TransientFailure)
					time.Sleep(window)
					synctest.Wait()
					d.deliver(d.conn(id), connectivity.Idle)
					f.lost = true
				case n < 17:
					what = "all drain"
					for _, f := range tr {
						f.draining = true
					}
				case n < 18:
					what = "none drains"
					for _, f := range tr {
						f.draining = false
					}
				default:
					what = "many at once"
					for range 1 + rnd.IntN(8) {
						join()
						_, f := some()
						f.weight = weight()
						_, f = some()
						f.draining = !f.draining
						leave()
					}
				}
				list()
				what = fmt.Sprintf("seed %d, step %d, %s", seed, step, what)
				check(what + ", before the table follows")
				old := d.homes()
				d.keepTables(false)
				pickAll() // and so each slot may be filled while a table is derived
				synctest.Wait()
				check(what + ", after")
				h := d.homes()
				if len(tr) > 0 && h.table != nil {
					ids, _ := tr.homes()
					require.Empty(t, h.added)
					require.Len(t, h.seats, len(ids)+1)
					if h.table != old.table && h.table.filled.Load() > uint32(n)/2 {
						derived++
					}
				}
				now := tr.weights()
				same := func(id string) bool { return before[id] == now[id] }
				for i := range home {
					if home[i] != was[i] && same(home[i]) && same(was[i]) {
						require.Equal(t, was[i], home[i], "%s: moved without need", what)
					}
				}
			}
		})
	}
	require.Greater(t, derived, seeds*steps/3)
}

// channel is a policy that is driven outside of a bubble, in real time.
func channelOf(t testing.TB, config string, eps ...resolver.Endpoint) (*policy, *fakeChannel) {
	t.Helper()
	ch := &fakeChannel{}
	p := balancer.Get(Name).Build(ch, balancer.BuildOptions{}).(*policy)
	t.Cleanup(p.Close)
	cfg, err := parseConfig([]byte(config))
	require.NoError(t, err)
	tell(t, p, ch, cfg, eps...)
	return p, ch
}

// tell gives the policy a list, and connects what it wants.
func tell(t testing.TB, p *policy, ch *fakeChannel, cfg *lbConfig, eps ...resolver.Endpoint) {
	t.Helper()
	require.NoError(t, p.UpdateClientConnState(balancer.ClientConnState{
		ResolverState: resolver.State{Endpoints: eps}, BalancerConfig: cfg,
	}))
	ch.connectAll()
}

func (f *fakeChannel) connectAll() {
	f.mu.Lock()
	conns := slices.Clone(f.conns)
	f.mu.Unlock()
	for _, c := range conns {
		f.mu.Lock()
		wanted := c.wanted && !c.shut
		c.wanted = false
		f.mu.Unlock()
		if !wanted {
			continue
		}
		c.listener(balancer.SubConnState{ConnectivityState: connectivity.Connecting})
		c.listener(balancer.SubConnState{ConnectivityState: connectivity.Ready})
		f.mu.Lock()
		health := c.health
		f.mu.Unlock()
		health(balancer.SubConnState{ConnectivityState: connectivity.Ready})
	}
}

func (f *fakeChannel) picker() balancer.Picker {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.Picker
}

// waitForTable waits until the table is what the servers are.
func waitForTable(t testing.TB, p *policy) *table {
	t.Helper()
	for range 10_000 {
		p.mu.Lock()
		stale := p.homes.staleLocked()
		p.mu.Unlock()
		if !stale {
			return p.homes.now.Load().table
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the table does not follow")
	return nil
}

// TestHomesUnderFire changes one server at a time while others pick. Each answer
// has to be the reference's, from before the change or from after it.
func TestHomesUnderFire(t *testing.T) {
	calls := callsFor(20_000)
	rnd := rand.New(rand.NewPCG(11, 12))
	tr := truth{}
	for i := range 40 {
		tr[fmt.Sprintf("s%d", i)] = &fact{weight: 1 + uint32(i)%3}
	}
	p, ch := channelOf(t, `{}`, tr.endpoints(rnd)...)

	// A window is the answers that hold from one change to the next but one.
	type window struct{ old, now []string }
	answers := func() []string {
		ids, ms := tr.homes()
		as := make([]string, len(calls.slots))
		for i, slot := range calls.slots {
			as[i] = ids[ms.home(slot)]
		}
		return as
	}
	var current atomic.Pointer[window]
	as := answers()
	current.Store(&window{as, as})

	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer func() { close(stop); wg.Wait() }()
	var picks, wrong atomic.Int64
	for part := range 2 {
		wg.Go(func() {
			for i := part; ; i = (i + 2) % len(calls.infos) {
				select {
				case <-stop:
					return
				default:
				}
				w := current.Load()
				got := where(ch.picker(), calls.infos[i])
				after := current.Load()
				if after != w && &after.old[0] != &w.now[0] && &after.old[0] != &w.old[0] {
					continue // took longer than a change
				}
				picks.Add(1)
				// A server that has just come waits for its connection.
				if got != w.old[i] && got != w.now[i] && got != after.now[i] && got != queued {
					wrong.Add(1)
					t.Errorf("got %s, want %s, %s or %s", got, w.old[i], w.now[i], after.now[i])
					return
				}
			}
		})
	}
	steps := 120
	if testing.Short() || raceEnabled {
		steps = 30
	}
	for step := range steps {
		ids := slices.Sorted(maps.Keys(tr))
		id := ids[rnd.IntN(len(ids))]
		old := current.Load().now
		goes := ""
		switch rnd.IntN(4) {
		case 0:
			tr[fmt.Sprintf("t%d-%d", rnd.IntN(10), step)] = &fact{weight: 1 + rnd.Uint32N(3)}
		case 1:
			tr[id].weight = 1 + rnd.Uint32N(4)
		case 2:
			if tr[id].draining && len(tr) > 30 {
				goes = id
				break
			}
			tr[id].draining = true
		default:
			tr[id].draining = false
		}
		delete(tr, goes)
		now := answers()
		current.Store(&window{old, now})
		tell(t, p, ch, p.cfg, tr.endpoints(rnd)...)
		current.Store(&window{now, now})
		if step%10 == 0 {
			waitForTable(t, p)
		} else {
			time.Sleep(time.Duration(rnd.IntN(2000)) * time.Microsecond)
		}
	}
	require.Zero(t, wrong.Load())
	require.Greater(t, picks.Load(), int64(10_000))
}

func TestTwoChannelsAgree(t *testing.T) {
	tr := truth{}
	for i := range 50 {
		tr[fmt.Sprintf("game-%d", i)] = &fact{weight: 1 + uint32(i)%3, draining: i%17 == 0}
	}
	_, a := channelOf(t, `{}`, tr.endpoints(rand.New(rand.NewPCG(1, 1)))...)
	_, b := channelOf(t, `{}`, tr.endpoints(rand.New(rand.NewPCG(2, 2)))...)
	pa, pb := a.picker(), b.picker()
	for i := range 100_000 {
		info := balancer.PickInfo{Ctx: key(fmt.Sprint("room-", i))}
		x, y := where(pa, info), where(pb, info)
		if x != y || x == queued {
			require.Equal(t, x, y, "room-%d", i)
			require.NotEqual(t, queued, x)
		}
	}
}

func TestChannelsShareATable(t *testing.T) {
	forgetTables()
	eps := []resolver.Endpoint{ep("a", weighs(2)), ep("b"), ep("c")}
	p, pch := channelOf(t, `{}`, eps...)
	q, qch := channelOf(t, `{}`, eps[2], eps[0], eps[1])
	other, och := channelOf(t, `{}`, ep("a"), ep("b"), ep("c"))
	for _, ch := range []*fakeChannel{pch, qch, och} {
		where(ch.picker(), balancer.PickInfo{Ctx: key("k")})
	}
	table := waitForTable(t, p)
	require.Same(t, table, waitForTable(t, q))
	require.NotSame(t, table, waitForTable(t, other))

	tell(t, q, qch, q.cfg, ep("a", weighs(2)), ep("b"), ep("c"), ep("d"))
	require.NotSame(t, table, waitForTable(t, q))
	tell(t, q, qch, q.cfg, ep("a", weighs(2)), ep("b"), ep("c"), ep("d", draining))
	require.Same(t, table, waitForTable(t, q), "who drains is not in it")
	runtime.KeepAlive(table)
}

func TestThereIsNoTableWithoutACallByKey(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		d.up("a", "b")
		for range 10 {
			d.pick(bg)
			d.pick(with("a"))
			d.pick(must("b"))
		}
		d.list(ep("a"), ep("b"), ep("c"))
		d.up("c")
		d.down("a")
		time.Sleep(window)
		synctest.Wait()
		require.Nil(t, d.homes().table)
		require.Contains(t, []string{"b", "c"}, d.server(with("a")), "it has lost its server")
		synctest.Wait()
		require.NotNil(t, d.homes().table)
	})
}

func TestTheTableGoesWithTheLastServer(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		d.up("a", "b")
		d.pick(key("k"))
		synctest.Wait()
		require.NotNil(t, d.homes().table)
		d.list(ep("a", draining), ep("b", draining))
		d.list()
		synctest.Wait()
		require.Nil(t, d.homes().table)
		require.Equal(t, failed, d.pick(key("k")))
		d.list(ep("c"))
		d.up("c")
		require.Equal(t, "c", d.server(key("k")))
		require.NotNil(t, d.homes().table)
	})
}

func TestPicksByKeyAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	drive(t, `{}`, func(t *testing.T, d *driver) {
		tr := truth{}
		for i := range 20 {
			tr[fmt.Sprint("s", i)] = &fact{weight: 1 + uint32(i)%2}
		}
		rnd := rand.New(rand.NewPCG(1, 2))
		d.list(tr.endpoints(rnd)...)
		d.up(slices.Collect(maps.Keys(tr))...)
		calls, i := callsFor(2000), 0
		allocates := func() float64 {
			picker := d.current().Picker
			return testing.AllocsPerRun(1000, func() {
				if _, err := picker.Pick(calls.infos[i%len(calls.infos)]); err != nil {
					panic(err)
				}
				i++
			})
		}
		d.keepTables(true)
		d.pick(key("k"))
		require.Nil(t, d.homes().table)
		require.Zero(t, allocates(), "no table yet")
		d.keepTables(false)
		synctest.Wait()
		require.NotNil(t, d.homes().table)
		require.Zero(t, allocates(), "filling slots")
		require.Zero(t, allocates())
		d.keepTables(true)
		tr["t"], tr["s3"].weight, tr["s4"].draining = &fact{weight: 2}, 3, true
		d.list(tr.endpoints(rnd)...)
		d.up("t")
		require.NotEmpty(t, d.homes().added)
		require.Zero(t, allocates(), "before the table follows")
		d.keepTables(false)
	})
}

// TestCloseEndsADerivation closes a policy while it derives a table.
func TestCloseEndsADerivation(t *testing.T) {
	forgetTables()
	var eps []resolver.Endpoint
	for i := range 20 {
		eps = append(eps, ep(fmt.Sprintf("game-%d", i)))
	}
	p, ch := channelOf(t, `{}`, eps[1:]...)
	where(ch.picker(), balancer.PickInfo{Ctx: key("k")})
	table := waitForTable(t, p)
	for slot := range uint32(slotCount) {
		table.owner(slot)
	}
	tables.mu.Lock() // where the derivation begins
	tell(t, p, ch, p.cfg, eps...)
	var wg sync.WaitGroup
	wg.Go(p.Close)
	<-p.homes.stop
	tables.mu.Unlock()
	wg.Wait()
	p.mu.Lock()
	require.False(t, p.homes.busy)
	p.mu.Unlock()
	require.Same(t, table, p.homes.now.Load().table)
	require.False(t, knownTable(seatsOf(named(20, same))).derived, "it was not waited for")
	where(ch.picker(), balancer.PickInfo{Ctx: key("k")}) // late, and harmless
}

// TestABurstIsOneTable lets many changes come while a table is being derived.
func TestABurstIsOneTable(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		var eps []resolver.Endpoint
		for i := range 30 {
			eps = append(eps, ep(fmt.Sprint("s", i)))
		}
		d.list(eps...)
		d.pick(key("k"))
		synctest.Wait()
		first := d.homes().table
		d.keepTables(true)
		for i := range 5 {
			eps = append(eps, ep(fmt.Sprint("t", i)))
			d.list(eps...)
			require.Same(t, first, d.homes().table)
			require.Len(t, d.homes().added, i+1)
		}
		d.keepTables(false)
		synctest.Wait()
		require.NotSame(t, first, d.homes().table)
		require.Len(t, d.homes().table.members, 35)
		require.Empty(t, d.homes().added)

		second := d.homes().table
		d.keepTables(true)
		now := slices.Clone(eps)
		now[3] = ep("s3", draining)
		d.list(now...)
		d.list(eps...)
		forgetTables() // or it would be shared
		d.keepTables(false)
		synctest.Wait()
		require.Same(t, second, d.homes().table, "all is as it was")
	})
}

// BenchmarkHomesFollow is one change of a list, of servers that wait for their
// connections: update is until picks are exact, follow until the table is new.
func BenchmarkHomesFollow(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		for name, weight := range map[string]func(int) uint32{"same": same, "mixed": mixed} {
			if n > 1000 && name != "same" {
				continue // half a minute to fill
			}
			table := full(named(n, weight))
			list := func(members []member) (eps []resolver.Endpoint) {
				for _, m := range members {
					eps = append(eps, ep(m.id, weighs(m.weight)))
				}
				return eps
			}
			all := list(named(n, weight))
			heavier, drains := slices.Clone(all), slices.Clone(all)
			heavier[n/2] = ep(fmt.Sprint("game-", n/2), weighs(weight(n/2)+1))
			drains[n/2] = ep(fmt.Sprint("game-", n/2), weighs(weight(n/2)), draining)
			for change, to := range map[string][]resolver.Endpoint{
				"added":      list(named(n+1, weight)),
				"removed":    append(slices.Clone(all[:n/2]), all[n/2+1:]...),
				"reweighted": heavier,
				"drained":    drains,
			} {
				b.Run(fmt.Sprintf("n=%d/weights=%s/change=%s", n, name, change), func(b *testing.B) {
					ch := &fakeChannel{}
					p := balancer.Get(Name).Build(ch, balancer.BuildOptions{}).(*policy)
					defer p.Close()
					cfg, err := parseConfig([]byte(`{"reconnectWindow": "1h", "absentGrace": "0s"}`))
					if err != nil {
						b.Fatal(err)
					}
					update := func(eps []resolver.Endpoint) {
						_ = p.UpdateClientConnState(balancer.ClientConnState{
							ResolverState: resolver.State{Endpoints: eps}, BalancerConfig: cfg})
					}
					settle := func() {
						waitForTable(b, p)
						for busy := true; busy; time.Sleep(time.Millisecond) {
							p.mu.Lock()
							busy = p.homes.busy
							p.mu.Unlock()
						}
					}
					// share makes the filled table known, as if another channel had it.
					share := func() {
						tables.mu.Lock()
						defer tables.mu.Unlock()
						tables.byPrint[printOf(table)] = weak.Make(table)
					}
					share()
					update(all)
					p.homes.want()
					settle()
					var updates, follows time.Duration
					b.ReportAllocs()
					for b.Loop() {
						forgetTables()
						start := time.Now()
						update(to)
						updates += time.Since(start)
						for p.homes.now.Load().table == table {
							runtime.Gosched()
						}
						follows += time.Since(start)
						b.StopTimer()
						settle()
						share()
						update(all)
						settle()
						if p.homes.now.Load().table != table {
							b.Fatal("not the table that was filled")
						}
						b.StartTimer()
					}
					b.ReportMetric(float64(updates.Microseconds())/float64(b.N), "update-us")
					b.ReportMetric(float64(follows.Microseconds())/float64(b.N), "follow-us")
					b.ReportMetric(0, "ns/op")
				})
			}
		}
	}
}

func printOf(t *table) uint64 {
	var seats []seat
	for _, m := range t.members {
		seats = append(seats, seat{newServer(m.id, 0), m.weight})
	}
	return fingerprint(seats)
}
