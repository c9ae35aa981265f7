//go:build unix

package bench

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/affinity"
)

// A way is one to find the home of a key among servers that come and go.
type way interface {
	homes(keys []string) []string // by address
	lookup(keys []string) func(i int)
	leave(tb testing.TB, server int)
}

// start makes the ways to n servers. most is how many servers a way affords: the rings of
// others are sorted whole for each server that is added.
var ways = []struct {
	label string
	most  int
	start func(tb testing.TB, n int) way
}{
	{"homing", 10_000, func(tb testing.TB, n int) way {
		// Without a grace, or who leaves the list would be kept.
		s := subject{ours.label, ours.policy, `{"absentGrace": "0s"}`}
		return &policyWay{rig: s.ready(tb, n), ctx: func(k string) context.Context { return affinity.WithKey(bg, k) }}
	}},
	{"ring_hash", 1000, func(tb testing.TB, n int) way { return &policyWay{rig: ringHash.ready(tb, n), ctx: keyHeader} }},
	{"ring_hash-64k", 1000, func(tb testing.TB, n int) way { return &policyWay{rig: ringHash64k.ready(tb, n), ctx: keyHeader} }},
	{"authzed-policy", 100, func(tb testing.TB, n int) way { return &policyWay{rig: authzed.ready(tb, n), ctx: authzedKey} }},
	{"authzed", 100, newBare(authzedOf)},
	{"go-zero", 100, newBare(goZeroOf)},
	{"go-rendezvous", 10_000, newBare(rendezvousOf)},
	{"maglev-64k", 10_000, newBare(maglevOf)},
	{"hrw", 10_000, newBare(hrwOf)},
}

// BenchmarkHomesCompared is the lookup, in a policy or in a bare table, and what
// one gets for it: the busiest server's keys over the mean; the keys that move
// without need when a server leaves; the CPU time of such a change, on all threads
// until it is quiet again; and the memory, in a policy beyond that of round_robin.
func BenchmarkHomesCompared(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		keys := make([]string, min(max(30_000, 1000*n), 300_000))
		for i := range keys {
			keys[i] = fmt.Sprint("user:", i)
		}
		for _, w := range ways {
			if n > w.most {
				continue
			}
			b.Run(fmt.Sprintf("n=%d/way=%s", n, w.label), func(b *testing.B) {
				before := heap()
				way := w.start(b, n)
				_, policy := way.(*policyWay)
				settle := func() { // the others do nothing aside
					if policy {
						quiet()
					}
				}
				was := way.homes(keys)
				settle()
				memory := heap() - before - len(was)*int(unsafe.Sizeof(""))
				if policy {
					before = heap()
					base := roundRobin.ready(b, n)
					memory -= heap() - before
					base.lb.Close()
				}

				i := 0
				find := way.lookup(keys)
				for b.Loop() {
					find(i & 255)
					i++
				}

				b.ReportMetric(busiest(was, n), "busiest/mean")
				b.ReportMetric(float64(max(memory, 0))/1024, "KB")
				moved, removals := 0, []int{n / 2, n / 3, n - 1}
				if n == 1000 {
					removals = removals[:1] // it takes long
				}
				var took time.Duration
				for _, server := range removals {
					gone := address(server)
					settle()
					start := cpuTime()
					way.leave(b, server)
					settle()
					took += cpuTime() - start
					is := way.homes(keys)
					for i := range keys {
						if is[i] != was[i] && was[i] != gone {
							moved++
						}
					}
					was = is
				}
				b.ReportMetric(100*float64(moved)/float64(len(keys)*len(removals)), "%needless")
				b.ReportMetric(float64(took.Microseconds())/float64(len(removals)), "us/change")
			})
		}
	}
}

func busiest(homes []string, n int) float64 {
	count := make(map[string]int)
	most := 0
	for _, h := range homes {
		count[h]++
		most = max(most, count[h])
	}
	return float64(most) * float64(n) / float64(len(homes))
}

func heap() int {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// quiet waits until what goes on aside is over.
func quiet() { time.Sleep(50 * time.Millisecond) }

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func address(i int) string { return list(i + 1).Endpoints[i].Addresses[0].Addr }

func addresses(n int) (addrs []string) {
	for _, ep := range list(n).Endpoints {
		addrs = append(addrs, ep.Addresses[0].Addr)
	}
	return addrs
}

// policyWay is a policy with all its servers READY.
type policyWay struct {
	*rig
	ctx func(key string) context.Context
}

func (w *policyWay) call(key string) balancer.PickInfo {
	return balancer.PickInfo{Ctx: w.ctx(key)}
}

func (w *policyWay) homes(keys []string) []string {
	p, _ := w.channel.newest()
	homes := make([]string, len(keys))
	for i, k := range keys {
		r, err := p.Pick(w.call(k))
		if err != nil {
			panic(err)
		}
		homes[i] = r.SubConn.(*conn).addr
	}
	return homes
}

func (w *policyWay) lookup(keys []string) func(int) {
	p, _ := w.channel.newest()
	var calls [256]balancer.PickInfo
	for i := range calls {
		calls[i] = w.call(keys[i])
	}
	return func(i int) {
		if _, err := p.Pick(calls[i]); err != nil {
			panic(err)
		}
	}
}

func (w *policyWay) leave(tb testing.TB, server int) {
	gone := address(server)
	w.state.Endpoints = slices.DeleteFunc(slices.Clone(w.state.Endpoints), func(ep resolver.Endpoint) bool {
		return ep.Addresses[0].Addr == gone
	})
	w.state.Addresses = slices.DeleteFunc(slices.Clone(w.state.Addresses), func(a resolver.Address) bool { return a.Addr == gone })
	w.update(tb, w.state)
}

var sink string

func each(keys []string, home func(string) string) []string {
	homes := make([]string, len(keys))
	for i, k := range keys {
		homes[i] = home(k)
	}
	return homes
}

func without(servers []string, server int) []string {
	gone := address(server)
	return slices.DeleteFunc(slices.Clone(servers), func(s string) bool { return s == gone })
}
