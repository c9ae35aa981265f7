package bench

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc/balancer"
)

// BenchmarkBalance is how even the homes are, and what a leave moves without need: of
// ours slot by slot, of Maglev entry by entry, so that no choice of keys has a say. What
// other ways do is in BenchmarkHomesCompared, by keys. It is also what all homes of ours
// take, and what those of a second channel to the same servers do.
func BenchmarkBalance(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("n=%d/way=homing", n), func(b *testing.B) {
			untimed(b)
			s := subject{ours.label, ours.policy, `{"absentGrace": "0s"}`}
			w, second := &policyWay{rig: s.ready(b, n)}, s.ready(b, n)
			defer w.lb.Close()
			defer second.lb.Close()
			homes := make([]string, slots)
			ask := func(r *rig) []string {
				p, _ := r.channel.newest()
				everySlot(func(slot int, info balancer.PickInfo) {
					r, err := p.Pick(info)
					if err != nil {
						b.Fatal(err)
					}
					homes[slot] = r.SubConn.(*conn).addr
				})
				return homes
			}
			for i, r := range []*rig{w.rig, second} {
				held := heap()
				ask(r)
				b.ReportMetric(float64(max(0, heap()-held))/1e6, []string{"MB/first", "MB/second"}[i])
			}
			reportBalance(b, n, func() []string { return slices.Clone(ask(w.rig)) }, func() { w.leave(b, n/2) })
		})
		b.Run(fmt.Sprintf("n=%d/way=maglev-64k", n), func(b *testing.B) {
			untimed(b)
			m := &maglev{servers: addresses(n)}
			m.fill()
			homes := func() []string {
				homes := make([]string, len(m.entries))
				for i, e := range m.entries {
					homes[i] = m.servers[e]
				}
				return homes
			}
			reportBalance(b, n, homes, func() {
				m.servers = without(m.servers, n/2)
				m.fill()
			})
		})
	}
}

// untimed is for a benchmark that counts. What it reports has to come afterwards.
func untimed(b *testing.B) {
	for b.Loop() {
	}
	b.ReportMetric(0, "ns/op")
}

func reportBalance(b *testing.B, n int, homes func() []string, leave func()) {
	was := homes()
	b.ReportMetric(busiest(was, n), "busiest/mean")
	leave()
	quiet()
	gone, needless, is := address(n/2), 0, homes()
	for i := range is {
		if is[i] != was[i] && was[i] != gone {
			needless++
		}
	}
	b.ReportMetric(100*float64(needless)/float64(len(is)), "%needless")
}
