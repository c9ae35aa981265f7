package bench

import (
	"flag"
	"fmt"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc/connectivity"
)

// lists are the subjects of benchmarks of what a list or a connection does.
var lists = []subject{roundRobin, weightedRobin, leastRequest, theRecipe, ours}

var slow = flag.Bool("slow", false, "benchmarks: also round_robin's bring-up at 10,000, of many seconds")

// BenchmarkBringUp is a new channel: n endpoints are listed, and become READY one by
// one. At 10,000 only ours, and with the flag -slow round_robin, which takes 8 to 20 s and
// allocates 13 GiB on the way; the others are left out.
// ring_hash connects what is picked, and so has no bring-up to compare.
func BenchmarkBringUp(b *testing.B) {
	for _, n := range sizes {
		for _, s := range append(lists, floor) {
			if n > 1000 && s != ours && s != floor && !(*slow && s == roundRobin) {
				continue
			}
			b.Run(fmt.Sprintf("n=%d/policy=%s", n, s.label), func(b *testing.B) {
				state := list(n)
				b.ReportAllocs()
				for b.Loop() {
					r := s.start(b)
					r.update(b, state)
					if up := r.channel.connect(); up != n {
						b.Fatalf("%d of %d are READY", up, n)
					}
					r.lb.Close()
				}
			})
		}
	}
}

// BenchmarkConnectionLost is from the moment that gRPC reports the loss of one
// connection of n to the new picker. That it is made again is not counted.
func BenchmarkConnectionLost(b *testing.B) {
	for _, n := range sizes {
		for _, s := range lists {
			if !s.affords(n) {
				continue
			}
			b.Run(fmt.Sprintf("n=%d/policy=%s", n, s.label), func(b *testing.B) {
				r := s.ready(b, n)
				defer r.lb.Close()
				sc := r.channel.conns[n/2]
				var took []time.Duration
				for b.Loop() {
					_, before := r.channel.newest()
					start := time.Now()
					sc.is(connectivity.Idle)
					took = append(took, time.Since(start))
					if _, now := r.channel.newest(); now == before {
						b.Fatal("no new picker")
					}
					for r.channel.connect() == 0 {
						runtime.Gosched() // some ask for it in a goroutine
					}
				}
				b.ReportMetric(middle(took), "ns/op")
			})
		}
	}
}

// BenchmarkSameList is what a resolver causes that reports what it reported
// before: with the same pointers, or made anew.
func BenchmarkSameList(b *testing.B) {
	for _, n := range sizes {
		for _, s := range lists {
			if !s.affords(n) {
				continue
			}
			r := s.ready(b, n)
			b.Run(fmt.Sprintf("n=%d/list=same/policy=%s", n, s.label), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					r.update(b, r.state)
				}
			})
			b.Run(fmt.Sprintf("n=%d/list=equal/policy=%s", n, s.label), func(b *testing.B) {
				a, z := list(n), list(n)
				b.ReportAllocs()
				for b.Loop() {
					r.update(b, a)
					a, z = z, a
				}
			})
			r.lb.Close()
		}
	}
}
