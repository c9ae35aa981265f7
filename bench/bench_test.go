package bench

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"

	"github.com/homing-grpc/homing/affinity"
)

var bg = context.Background()

// picks are the calls that are compared. The first subject of a kind of call is
// the one to compare with. Calls that name something name one thing all the time, so
// that what is measured is the pick, or, where the name ends in -256, many in turn, so
// that what is measured is memory too.
var picks = []struct {
	call     string
	subjects []subject
	many     int
	ctx      func(s subject, n, i int) context.Context
}{
	{"none", []subject{roundRobin, weightedRobin, theRecipe, ours, noHeaders}, 1, func(s subject, _, _ int) context.Context {
		if s == ours {
			return marked(bg)
		}
		return bg
	}},
	{"none-unmarked", []subject{roundRobin, ours}, 1, func(subject, int, int) context.Context { return bg }},
	{"none-among-headers", []subject{roundRobin, theRecipe, ours, noHeaders}, 1, func(s subject, _, _ int) context.Context {
		if s == ours {
			return marked(among(bg))
		}
		return among(bg)
	}},
	{"none-unmarked-among-headers", []subject{roundRobin, ours}, 1, func(subject, int, int) context.Context { return among(bg) }},
	{"id-ctx", []subject{theRecipe, ours}, 1, func(s subject, n, i int) context.Context {
		if s == theRecipe {
			return recipeWith(bg, id(i%n))
		}
		return affinity.With(bg, id(i%n))
	}},
	{"id-ctx-256", []subject{theRecipe, ours}, 256, func(s subject, n, i int) context.Context {
		if s == theRecipe {
			return recipeWith(bg, id(i%n))
		}
		return affinity.With(bg, id(i%n))
	}},
	{"key-ctx", []subject{ours}, 1, func(_ subject, _, i int) context.Context {
		return affinity.WithKey(bg, fmt.Sprint("room-", i))
	}},
	{"key-ctx-256", []subject{ours}, 256, func(_ subject, _, i int) context.Context {
		return affinity.WithKey(bg, fmt.Sprint("room-", i))
	}},
	{"session", []subject{ours}, 1, func(_ subject, _, i int) context.Context {
		return affinity.NewSession(fmt.Sprint("room-", i)).Context(bg)
	}},
	{"session-256", []subject{ours}, 256, func(_ subject, _, i int) context.Context {
		return affinity.NewSession(fmt.Sprint("room-", i)).Context(bg)
	}},
	{"id-metadata", []subject{theRecipe, ours}, 1, func(_ subject, n, i int) context.Context {
		return idHeader(id(i % n))
	}},
	{"id-metadata-256", []subject{theRecipe, ours}, 256, func(_ subject, n, i int) context.Context {
		return idHeader(id(i % n))
	}},
	{"id-metadata-among-headers", []subject{theRecipe, ours}, 1, func(_ subject, n, i int) context.Context {
		return among(idHeader(id(i % n)))
	}},
	{"key-metadata", []subject{ringHash, ours}, 1, func(_ subject, _, i int) context.Context {
		return keyHeader(fmt.Sprint("room-", i))
	}},
	{"key-metadata-256", []subject{ringHash, ours}, 256, func(_ subject, _, i int) context.Context {
		return keyHeader(fmt.Sprint("room-", i))
	}},
	{"key-metadata-among-headers", []subject{ringHash, ours}, 1, func(_ subject, _, i int) context.Context {
		return among(keyHeader(fmt.Sprint("room-", i)))
	}},
}

// BenchmarkPick is one pick: all endpoints are READY, the context is made.
func BenchmarkPick(b *testing.B) {
	eachPick(b, func(b *testing.B, p balancer.Picker, calls []balancer.PickInfo) {
		i := 0
		for b.Loop() {
			if _, err := p.Pick(calls[i]); err != nil {
				b.Fatal(err)
			}
			if i++; i == len(calls) {
				i = 0
			}
		}
	})
}

// BenchmarkPickParallel is BenchmarkPick on all cores at once, which shows what
// picks write to memory that they share.
func BenchmarkPickParallel(b *testing.B) {
	eachPick(b, func(b *testing.B, p balancer.Picker, calls []balancer.PickInfo) {
		b.RunParallel(func(pb *testing.PB) {
			i := 0
			for pb.Next() {
				if _, err := p.Pick(calls[i]); err != nil {
					b.Error(err)
					return
				}
				if i++; i == len(calls) {
					i = 0
				}
			}
		})
	})
}

func eachPick(b *testing.B, run func(b *testing.B, p balancer.Picker, calls []balancer.PickInfo)) {
	for _, n := range []int{3, 100, 1000} {
		for _, c := range picks {
			for _, s := range c.subjects {
				b.Run(fmt.Sprintf("n=%d/call=%s/policy=%s", n, c.call, s.label), func(b *testing.B) {
					p, _ := warm(b, s, n).channel.newest()
					calls := make([]balancer.PickInfo, c.many)
					for i := range calls {
						calls[i] = balancer.PickInfo{Ctx: c.ctx(s, n, i), FullMethodName: "/bench/Call"}
						// The first call of a session, answered: now it is sure of its server.
						if r, err := p.Pick(calls[i]); err == nil && r.Done != nil {
							r.Done(balancer.DoneInfo{BytesSent: true, BytesReceived: true})
						}
					}
					b.ReportAllocs()
					b.ResetTimer()
					run(b, p, calls)
				})
			}
		}
	}
}

type warmKey struct {
	subject
	n int
}

// kept are the rigs of picks, which change nothing. To bring one up is slow
// under some policies.
var kept = map[warmKey]*rig{}

func warm(b *testing.B, s subject, n int) *rig {
	k := warmKey{s, n}
	if kept[k] == nil {
		kept[k] = s.ready(b, n)
	}
	return kept[k]
}

// BenchmarkBringUp is a new channel: n endpoints are listed, and become READY
// one by one.
func BenchmarkBringUp(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		for _, s := range []subject{roundRobin, theRecipe, ours} {
			if n > 1000 && s != ours {
				continue // seconds to minutes
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
	for _, n := range []int{100, 1000, 10_000} {
		for _, s := range []subject{roundRobin, theRecipe, ours} {
			if n > 1000 && s != ours {
				continue
			}
			b.Run(fmt.Sprintf("n=%d/policy=%s", n, s.label), func(b *testing.B) {
				r := s.ready(b, n)
				defer r.lb.Close()
				sc := r.channel.conns[n/2]
				var took time.Duration
				for b.Loop() {
					_, before := r.channel.newest()
					start := time.Now()
					sc.is(connectivity.Idle)
					took += time.Since(start)
					if _, now := r.channel.newest(); now == before {
						b.Fatal("no new picker")
					}
					for r.channel.connect() == 0 {
						runtime.Gosched() // some ask for it in a goroutine
					}
				}
				b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "ns/op")
			})
		}
	}
}

// BenchmarkSameList is what a resolver causes that reports what it reported
// before: with the same pointers, or made anew.
func BenchmarkSameList(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		for _, s := range []subject{roundRobin, theRecipe, ours} {
			if n > 1000 && s != ours {
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
