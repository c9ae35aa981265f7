package bench

import (
	"fmt"
	"testing"

	"google.golang.org/grpc/balancer"
)

// BenchmarkBalance is how even the homes are, and what a leave moves without need: of
// ours slot by slot, of Maglev entry by entry, so that no choice of keys has a say. What
// other ways do is in BenchmarkHomesCompared, by keys.
func BenchmarkBalance(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("n=%d/way=homing", n), func(b *testing.B) {
			s := subject{ours.label, ours.policy, `{"absentGrace": "0s"}`}
			w := &policyWay{rig: s.ready(b, n)}
			defer w.lb.Close()
			homes := func() []string {
				p, _ := w.channel.newest()
				homes := make([]string, slots)
				everySlot(func(slot int, info balancer.PickInfo) {
					r, err := p.Pick(info)
					if err != nil {
						b.Fatal(err)
					}
					homes[slot] = r.SubConn.(*conn).addr
				})
				return homes
			}
			reportBalance(b, n, homes, func() { w.leave(b, n/2) })
		})
		b.Run(fmt.Sprintf("n=%d/way=maglev-64k", n), func(b *testing.B) {
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

func reportBalance(b *testing.B, n int, homes func() []string, leave func()) {
	for b.Loop() { // nothing is timed
	}
	b.ReportMetric(0, "ns/op")
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
