//go:build unix

package bench

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/callctx"
)

// A way is one to find the home of a key among servers that come and go.
type way interface {
	homes(keys []string) []string // by address
	lookup(keys []string) func(i int)
	leave(tb testing.TB, server int)
}

var ways = []struct {
	label string
	start func(tb testing.TB, n int) way
}{
	{"homing", func(tb testing.TB, n int) way {
		// Without a grace, or who leaves the list would be kept.
		s := subject{ours.label, ours.policy, `{"absentGrace": "0s"}`}
		return &policyWay{rig: s.ready(tb, n)}
	}},
	{"ring_hash", func(tb testing.TB, n int) way { return &policyWay{rig: ringHash.ready(tb, n), headers: true} }},
	{"ring_hash-64k", func(tb testing.TB, n int) way { return &policyWay{rig: ringHash64k.ready(tb, n), headers: true} }},
	{"maglev-64k", func(_ testing.TB, n int) way {
		m := &maglev{servers: addresses(n)}
		m.fill()
		return m
	}},
	{"hrw", func(_ testing.TB, n int) way {
		h := &hrw{servers: addresses(n)}
		h.hash()
		return h
	}},
}

// BenchmarkHomesCompared is the lookup, in a policy or in a bare table, and what
// one gets for it: the busiest server's keys over the mean; the keys that move
// without need when a server leaves; the CPU time of such a change, on all threads
// until it is quiet again; and the memory, in a policy beyond that of round_robin.
func BenchmarkHomesCompared(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		keys := make([]string, min(max(100_000, 1000*n), 1_000_000))
		for i := range keys {
			keys[i] = fmt.Sprint("user:", i)
		}
		for _, w := range ways {
			b.Run(fmt.Sprintf("n=%d/way=%s", n, w.label), func(b *testing.B) {
				before := heap()
				way := w.start(b, n)
				way.homes(keys)
				quiet()
				memory := heap() - before
				if _, ok := way.(*policyWay); ok {
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

				was := way.homes(keys)
				b.ReportMetric(busiest(was, n), "busiest/mean")
				b.ReportMetric(float64(max(memory, 0))/1024, "KB")
				moved, removals := 0, []int{n / 2, n / 3, n - 1}
				var took time.Duration
				for _, server := range removals {
					quiet()
					start := cpuTime()
					way.leave(b, server)
					quiet()
					took += cpuTime() - start
					is := way.homes(keys)
					for i := range keys {
						if is[i] != was[i] && was[i] != address(server) {
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
	headers bool // calls carry keys in their metadata
}

func (w *policyWay) call(key string) balancer.PickInfo {
	if w.headers {
		return balancer.PickInfo{Ctx: keyHeader(key)}
	}
	return balancer.PickInfo{Ctx: affinity.WithKey(bg, key)}
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
	w.state.Addresses = nil
	w.update(tb, w.state)
}

// maglev is the table of Maglev (Eisenbud and others, 2016), section 3.4: servers
// take turns to claim the next free entry in an order of their own.
type maglev struct {
	servers []string
	entries [65537]uint16
}

func (m *maglev) fill() {
	const size = uint64(len(m.entries))
	type turn struct{ next, step uint64 }
	turns := make([]turn, len(m.servers))
	for i, s := range m.servers {
		turns[i] = turn{callctx.Hash(s) % size, callctx.Hash(s+"#")%(size-1) + 1}
	}
	const free = math.MaxUint16
	for i := range m.entries {
		m.entries[i] = free
	}
	for claimed := 0; ; {
		for i := range turns {
			t := &turns[i]
			for m.entries[t.next] != free {
				t.next = (t.next + t.step) % size
			}
			m.entries[t.next] = uint16(i)
			if claimed++; claimed == len(m.entries) {
				return
			}
		}
	}
}

func (m *maglev) home(key string) string {
	return m.servers[m.entries[callctx.Hash(key)%uint64(len(m.entries))]]
}

func (m *maglev) homes(keys []string) []string   { return each(keys, m.home) }
func (m *maglev) lookup(keys []string) func(int) { return func(i int) { sink = m.home(keys[i]) } }
func (m *maglev) leave(_ testing.TB, server int) { m.servers = without(m.servers, server); m.fill() }

// hrw is rendezvous hashing as it is in textbooks: each lookup asks all servers.
type hrw struct {
	servers []string
	hashes  []uint64
}

func (h *hrw) hash() {
	h.hashes = make([]uint64, len(h.servers))
	for i, s := range h.servers {
		h.hashes[i] = callctx.Hash(s)
	}
}

func (h *hrw) home(key string) string {
	k := callctx.Hash(key)
	best, most := 0, uint64(0)
	for i, s := range h.hashes {
		x := (k ^ s) * 0x9E3779B97F4A7C15
		x = (x ^ x>>32) * 0xD6E8FEB86659FD93
		if x ^= x >> 32; x > most {
			best, most = i, x
		}
	}
	return h.servers[best]
}

func (h *hrw) homes(keys []string) []string   { return each(keys, h.home) }
func (h *hrw) lookup(keys []string) func(int) { return func(i int) { sink = h.home(keys[i]) } }
func (h *hrw) leave(_ testing.TB, server int) { h.servers = without(h.servers, server); h.hash() }

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
