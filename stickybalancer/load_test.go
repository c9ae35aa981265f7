package stickybalancer

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/callctx"
)

// flight is a call that has been sent and has not ended.
type flight struct {
	server string
	done   func(balancer.DoneInfo)
}

func (f flight) end() { f.done(balancer.DoneInfo{}) }

func (d *driver) begin(ctx context.Context) flight {
	d.t.Helper()
	r, err := d.current().Picker.Pick(balancer.PickInfo{Ctx: ctx})
	require.NoError(d.t, err)
	require.NotNil(d.t, r.Done, "calls are counted")
	return flight{r.SubConn.(*fakeConn).addr, r.Done}
}

// loaded runs f with n servers that are READY, under maxLoadFactor 1.5.
func loaded(t *testing.T, n int, weight func(int) uint32, f func(t *testing.T, d *driver, eps []resolver.Endpoint)) {
	drive(t, `{"maxLoadFactor": 1.5}`, func(t *testing.T, d *driver) {
		var eps []resolver.Endpoint
		var all []string
		for _, m := range named(n, weight) {
			eps, all = append(eps, ep(m.id, weighs(m.weight))), append(all, m.id)
		}
		d.list(slices.Clone(eps)...)
		d.up(all...)
		f(t, d, eps)
	})
}

func (d *driver) inFlight() (total int64, each map[string]int64) {
	p := d.lb.(*policy)
	p.mu.Lock()
	defer p.mu.Unlock()
	each = make(map[string]int64)
	for s := range p.serversLocked() {
		if s.load != nil {
			each[s.id] = s.load.n.Load()
		}
	}
	return p.loads.total.Load(), each
}

// TestNoServerIsAboveItsBound sends calls by a few hot keys, which without a
// bound would all be on a few servers, and lets some of them end.
func TestNoServerIsAboveItsBound(t *testing.T) {
	for name, weight := range map[string]func(int) uint32{"same": same, "mixed": mixed} {
		t.Run(name, func(t *testing.T) {
			loaded(t, 20, weight, func(t *testing.T, d *driver, _ []resolver.Endpoint) {
				rnd := rand.New(rand.NewPCG(1, 2))
				sum := 0.
				for _, m := range named(20, weight) {
					sum += float64(m.weight)
				}
				var flights []flight
				for step := range 3000 {
					if n := len(flights); n > 0 && rnd.IntN(3) == 0 {
						i := rnd.IntN(n)
						flights[i].end()
						flights = slices.Delete(flights, i, i+1)
						continue
					}
					f := d.begin(key(fmt.Sprint("hot-", rnd.IntN(3))))
					flights = append(flights, f)
					total, each := d.inFlight()
					require.EqualValues(t, len(flights), total)
					for i, m := range named(20, weight) {
						if m.id == f.server {
							bound := math.Ceil(1.5 * float64(total) * float64(weight(i)) / sum)
							require.LessOrEqual(t, float64(each[m.id]), bound, "step %d, %s", step, m.id)
						}
					}
				}
				for _, f := range flights {
					f.end()
				}
				total, each := d.inFlight()
				require.Zero(t, total)
				for _, n := range each {
					require.Zero(t, n)
				}
			})
		})
	}
}

func TestAKeySpillsInItsOrderAndReturns(t *testing.T) {
	loaded(t, 5, same, func(t *testing.T, d *driver, _ []resolver.Endpoint) {
		// The order of the key: who is home when those before are gone.
		slot := slotOf(callctx.Hash("k"))
		members, order := named(5, same), []string{}
		for len(members) > 0 {
			at := of(members).home(slot)
			order = append(order, members[at].id)
			members = slices.Delete(members, at, at+1)
		}
		// 1.5 times a fifth of 1, 2, 3 and 4 calls is 1 or 2 when rounded up.
		want := []string{order[0], order[1], order[2], order[0], order[1], order[2], order[0]}
		bounds := []int{1, 1, 1, 2, 2, 2, 3}
		var flights []flight
		count := map[string]int{}
		for i := range want {
			f := d.begin(key("k"))
			require.LessOrEqual(t, bounds[i], int(math.Ceil(1.5*float64(i+1)/5)))
			require.Equal(t, want[i], f.server, "call %d", i)
			count[f.server]++
			flights = append(flights, f)
		}
		for _, f := range flights {
			f.end()
		}
		for range 3 {
			f := d.begin(key("k"))
			require.Equal(t, order[0], f.server, "the load has fallen")
			f.end()
		}
	})
}

// All calls count, and only those that go by a key are passed on.
func TestOnlyCallsByKeySpill(t *testing.T) {
	loaded(t, 4, same, func(t *testing.T, d *driver, _ []resolver.Endpoint) {
		home := d.begin(key("k")).server
		for _, ctx := range []context.Context{with(home), must(home), with2(home, "k")} {
			for range 4 {
				require.Equal(t, home, d.begin(ctx).server)
			}
		}
		require.NotEqual(t, home, d.begin(key("k")).server, "it has 13 of 13")
		for range 400 {
			d.begin(bg)
		}
		require.Equal(t, home, d.begin(key("k")).server, "it has not 1.5 times the mean")
		total, _ := d.inFlight()
		require.EqualValues(t, 415, total)

		time.Sleep(window) // until ids never listed are waited for no longer
		synctest.Wait()
		meets := d.begin(with("nobody")).server
		for range 800 {
			require.Equal(t, meets, d.begin(with("nobody")).server, "all who have lost one server meet on one")
		}
	})
}

func TestAHomeInItsWindowIsWaitedFor(t *testing.T) {
	loaded(t, 4, same, func(t *testing.T, d *driver, _ []resolver.Endpoint) {
		home := d.begin(key("k")).server
		for range 10 {
			d.begin(must(home))
		}
		require.NotEqual(t, home, d.begin(key("k")).server)
		d.down(home)
		require.Equal(t, queued, d.pick(key("k")))
		d.up(home)
		require.NotEqual(t, home, d.begin(key("k")).server, "its calls are counted still")
	})
}

func TestAKeySpillsOnlyToAReadyServer(t *testing.T) {
	loaded(t, 4, same, func(t *testing.T, d *driver, eps []resolver.Endpoint) {
		home := d.begin(key("k")).server
		for _, e := range eps {
			if addr := e.Addresses[0].Addr; addr != home {
				d.down(addr)
				d.deliver(d.conn(addr), connectivity.Connecting)
			}
		}
		for range 20 {
			require.Equal(t, home, d.begin(key("k")).server, "alone it has all that is its due")
		}
	})
	loaded(t, 10, same, func(t *testing.T, d *driver, eps []resolver.Endpoint) {
		f := d.begin(key("k"))
		f.end()
		left := 1
		for _, e := range eps {
			if addr := e.Addresses[0].Addr; addr != f.server {
				if left++; left > 2 {
					d.down(addr)
				}
			}
		}
		require.Equal(t, f.server, d.begin(key("k")).server)
		require.Equal(t, f.server, d.begin(key("k")).server, "1.5 times half of 2")
		require.Equal(t, f.server, d.begin(key("k")).server, "1.5 times half of 3, rounded up")
		require.NotEqual(t, f.server, d.begin(key("k")).server, "1.5 times half of 4")
	})
}

// Who drains is given nothing new, unless all do.
func TestAKeyDoesNotSpillToADrainingServer(t *testing.T) {
	loaded(t, 4, same, func(t *testing.T, d *driver, eps []resolver.Endpoint) {
		weight := func() uint64 { return d.lb.(*policy).loads.weight.Load() }
		require.EqualValues(t, 4, weight())
		home := d.begin(key("k")).server
		next := d.begin(key("k")).server
		for i, e := range eps {
			if e.Addresses[0].Addr == next {
				eps[i] = ep(next, draining)
			}
		}
		d.list(slices.Clone(eps)...)
		require.EqualValues(t, 3, weight())
		for range 20 {
			require.NotEqual(t, next, d.begin(key("k")).server)
		}
		d.down(home)
		require.EqualValues(t, 2, weight())
		d.up(home)
		for i, e := range eps {
			eps[i] = ep(e.Addresses[0].Addr, draining)
		}
		d.list(slices.Clone(eps)...)
		require.EqualValues(t, 4, weight())
		got := map[string]bool{}
		for range 40 {
			got[d.begin(key("k")).server] = true
		}
		require.Len(t, got, 3)
		d.list(eps[1:]...)
		require.EqualValues(t, 3, weight())
	})
}

func TestTheLoadFactorCanChangeAtRunTime(t *testing.T) {
	loaded(t, 4, same, func(t *testing.T, d *driver, eps []resolver.Endpoint) {
		first := d.begin(key("k"))
		var others []flight
		for range 9 {
			others = append(others, d.begin(key("k")))
		}
		d.configure(`{}`)
		d.list(eps...)
		for range 10 {
			require.Equal(t, first.server, d.server(key("k"))) // server requires that there is no Done
			d.pick(bg)
			d.pick(must(first.server))
		}
		first.end() // begun while it was on
		d.configure(`{"maxLoadFactor": 100}`)
		d.list(eps...)
		total, _ := d.inFlight()
		require.EqualValues(t, 9, total)
		for range 10 {
			f := d.begin(key("k"))
			require.Equal(t, first.server, f.server)
			f.end()
		}
		for _, f := range others {
			f.end()
		}
		total, _ = d.inFlight()
		require.Zero(t, total)
	})
}

func TestCountingAddsToTheChildsDone(t *testing.T) {
	drive(t, `{"maxLoadFactor": 2}`, func(t *testing.T, d *driver) {
		d.list(ep("a"))
		d.up("a")
		s, ended := d.lb.(*policy).server("a"), 0
		s.child.UpdateState(balancer.State{ConnectivityState: connectivity.Ready, Picker: wrapped{
			Picker: s.child.picker, done: func(balancer.DoneInfo) { ended++ },
		}})
		for _, ctx := range []context.Context{bg, must("a"), key("k")} {
			f := d.begin(ctx)
			total, _ := d.inFlight()
			require.EqualValues(t, 1, total)
			f.end()
		}
		total, _ := d.inFlight()
		require.Zero(t, total)
		require.Equal(t, 3, ended)
	})
}

func TestCountedPicksAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	loaded(t, 10, mixed, func(t *testing.T, d *driver, _ []resolver.Endpoint) {
		for name, ctx := range map[string]context.Context{
			"nothing": bg, "id": must("game-1"), "key": affinity.WithKey(bg, "k"),
		} {
			picker, info := d.current().Picker, balancer.PickInfo{Ctx: ctx}
			var done []func(balancer.DoneInfo)
			done = make([]func(balancer.DoneInfo), 0, 2000)
			require.Zero(t, testing.AllocsPerRun(1000, func() {
				r, err := picker.Pick(info)
				if err != nil {
					panic(err)
				}
				done = append(done, r.Done)
			}), name)
			for _, f := range done {
				f(balancer.DoneInfo{})
			}
		}
	})
}
