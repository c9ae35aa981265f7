package bench

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc/balancer"

	"github.com/homing-grpc/homing/affinity"
)

var bg = context.Background()

var sizes = []int{3, 10, 100, 1000, 10_000}

// affords reports whether a policy can be brought up to n endpoints that are READY
// within seconds. At 10,000 the recipe makes 10,000 maps, and ring_hash a picker of all
// for each connection; authzed/consistent sorts its ring of 100
// entries a server for each server.
func (s subject) affords(n int) bool {
	switch s {
	case ours, recorded, noHeaders, roundRobin, weightedRobin, leastRequest:
		return true
	}
	return n <= 1000
}

// intercepted reports whether calls carry the mark of the client interceptor.
func (s subject) intercepted() bool { return s == ours || s == recorded }

// picks are the calls that are compared. The first subject of a kind of call is the
// one to compare with: round_robin, whose calls say nothing. Calls that name something name one thing all the time, so
// that what is measured is the pick, or, where the name ends in -256, many in turn, so
// that what is measured is memory too.
var picks = []struct {
	call     string
	subjects []subject
	many     int
	ctx      func(s subject, n, i int) context.Context
}{
	{"none", []subject{roundRobin, weightedRobin, leastRequest, theRecipe, ours, recorded, noHeaders}, 1, func(s subject, _, _ int) context.Context {
		if s.intercepted() {
			return marked(bg)
		}
		return bg
	}},
	{"none-unmarked", []subject{roundRobin, ours}, 1, func(subject, int, int) context.Context { return bg }},
	{"none-deep", []subject{roundRobin, ours, recorded, noHeaders}, 1, func(s subject, _, _ int) context.Context {
		if s.intercepted() {
			return deep(marked(bg))
		}
		return deep(bg)
	}},
	{"none-among-headers", []subject{roundRobin, theRecipe, ours, recorded, noHeaders}, 1, func(s subject, _, _ int) context.Context {
		if s.intercepted() {
			return marked(among(bg))
		}
		return among(bg)
	}},
	{"none-unmarked-among-headers", []subject{roundRobin, ours}, 1, func(subject, int, int) context.Context { return among(bg) }},
	{"id-ctx", []subject{roundRobin, theRecipe, ours, recorded}, 1, func(s subject, n, i int) context.Context {
		if s == theRecipe {
			return recipeWith(bg, id(i%n))
		}
		return affinity.With(bg, id(i%n))
	}},
	{"id-ctx-256", []subject{roundRobin, theRecipe, ours, recorded}, 256, func(s subject, n, i int) context.Context {
		if s == theRecipe {
			return recipeWith(bg, id(i%n))
		}
		return affinity.With(bg, id(i%n))
	}},
	{"key-ctx", []subject{roundRobin, ours, recorded}, 1, func(_ subject, _, i int) context.Context {
		return affinity.WithKey(bg, fmt.Sprint("room-", i))
	}},
	{"key-ctx-256", []subject{roundRobin, ours, recorded}, 256, func(_ subject, _, i int) context.Context {
		return affinity.WithKey(bg, fmt.Sprint("room-", i))
	}},
	{"session", []subject{roundRobin, ours, recorded}, 1, func(_ subject, _, i int) context.Context {
		return affinity.NewSession(fmt.Sprint("room-", i)).Context(bg)
	}},
	{"session-256", []subject{roundRobin, ours, recorded}, 256, func(_ subject, _, i int) context.Context {
		return affinity.NewSession(fmt.Sprint("room-", i)).Context(bg)
	}},
	{"id-metadata", []subject{roundRobin, theRecipe, ours, recorded}, 1, func(_ subject, n, i int) context.Context {
		return idHeader(id(i % n))
	}},
	{"id-metadata-256", []subject{roundRobin, theRecipe, ours}, 256, func(_ subject, n, i int) context.Context {
		return idHeader(id(i % n))
	}},
	{"id-metadata-among-headers", []subject{roundRobin, theRecipe, ours}, 1, func(_ subject, n, i int) context.Context {
		return among(idHeader(id(i % n)))
	}},
	{"key-metadata", []subject{roundRobin, ringHash, ringHash64k, ours, recorded}, 1, func(_ subject, _, i int) context.Context {
		return keyHeader(fmt.Sprint("room-", i))
	}},
	{"key-metadata-256", []subject{roundRobin, ringHash, ringHash64k, ours}, 256, func(_ subject, _, i int) context.Context {
		return keyHeader(fmt.Sprint("room-", i))
	}},
	{"key-metadata-among-headers", []subject{roundRobin, ringHash, ringHash64k, ours}, 1, func(_ subject, _, i int) context.Context {
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
	for _, n := range sizes {
		for _, c := range picks {
			for _, s := range c.subjects {
				if !s.affords(n) {
					continue
				}
				b.Run(fmt.Sprintf("n=%d/call=%s/policy=%s", n, c.call, s.label), func(b *testing.B) {
					p, _ := warm(b, s, n).channel.newest()
					calls := make([]balancer.PickInfo, c.many)
					for i := range calls {
						calls[i] = balancer.PickInfo{Ctx: bg, FullMethodName: "/bench/Call"}
						if s != roundRobin {
							calls[i].Ctx = c.ctx(s, n, i)
						}
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
