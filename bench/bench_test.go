package bench

import (
	"context"
	"fmt"
	"slices"
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
	case authzed:
		return n <= 100
	}
	return n <= 1000
}

// intercepted reports whether calls carry the mark of the client interceptor.
func (s subject) intercepted() bool { return s == ours || s == recorded }

// A call is a kind of them, and the policies that are compared by it. The first is the one
// to compare with: round_robin, whose calls say nothing.
type call struct {
	name     string
	subjects []subject
	many     int // different ones, in turn
	ctx      func(s subject, n, i int) context.Context
}

// picks are the calls that are compared. Calls that name something name one thing all the
// time, so that what is measured is the pick, or, where the name ends in -256, many in turn,
// so that what is measured is memory too.
var picks = []call{
	{"none", []subject{roundRobin, weightedRobin, leastRequest, theRecipe, ours, recorded, noHeaders}, 1, func(s subject, _, _ int) context.Context {
		if s.intercepted() {
			return marked(bg)
		}
		return bg
	}},
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
	{"key-ctx", []subject{roundRobin, authzed, ours, recorded}, 1, keyInContext},
	{"key-ctx-256", []subject{roundRobin, authzed, ours, recorded}, 256, keyInContext},
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
	{"key-metadata", []subject{roundRobin, ringHash, ringHash64k, ours, recorded}, 1, func(_ subject, _, i int) context.Context {
		return keyHeader(fmt.Sprint("room-", i))
	}},
	{"key-metadata-256", []subject{roundRobin, ringHash, ringHash64k, ours}, 256, func(_ subject, _, i int) context.Context {
		return keyHeader(fmt.Sprint("room-", i))
	}},
}

// contexts are calls that differ in what else their context holds, which costs the same at
// any size.
var contexts = []call{
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
	{"id-metadata-among-headers", []subject{roundRobin, theRecipe, ours}, 1, func(_ subject, n, i int) context.Context {
		return among(idHeader(id(i % n)))
	}},
	{"key-metadata-among-headers", []subject{roundRobin, ringHash, ringHash64k, ours}, 1, func(_ subject, _, i int) context.Context {
		return among(keyHeader(fmt.Sprint("room-", i)))
	}},
}

func keyInContext(s subject, _, i int) context.Context {
	key := fmt.Sprint("room-", i)
	if s == authzed {
		return authzedKey(key)
	}
	return affinity.WithKey(bg, key)
}

// BenchmarkPick is one pick: all endpoints are READY, the context is made.
func BenchmarkPick(b *testing.B) { eachPick(b, sizes, picks, alone) }

// BenchmarkPickContext is BenchmarkPick for calls whose context holds more, or other things.
func BenchmarkPickContext(b *testing.B) { eachPick(b, []int{1000}, contexts, alone) }

func alone(b *testing.B, p balancer.Picker, calls []balancer.PickInfo) {
	i := 0
	for b.Loop() {
		if _, err := p.Pick(calls[i]); err != nil {
			b.Fatal(err)
		}
		if i++; i == len(calls) {
			i = 0
		}
	}
}

// BenchmarkPickParallel is BenchmarkPick on all cores at once, which shows what
// picks write to memory that they share.
func BenchmarkPickParallel(b *testing.B) {
	eachPick(b, sizes, picks, func(b *testing.B, p balancer.Picker, calls []balancer.PickInfo) {
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

func eachPick(b *testing.B, sizes []int, calls []call, run func(b *testing.B, p balancer.Picker, calls []balancer.PickInfo)) {
	for _, n := range sizes {
		for i, c := range calls {
			for _, s := range c.subjects {
				if !s.affords(n) {
					continue
				}
				b.Run(fmt.Sprintf("n=%d/call=%s/policy=%s", n, c.name, s.label), func(b *testing.B) {
					p, _ := warm(b, s, n).channel.newest()
					infos := make([]balancer.PickInfo, c.many)
					for i := range infos {
						infos[i] = balancer.PickInfo{Ctx: bg, FullMethodName: "/bench/Call"}
						if s != roundRobin {
							infos[i].Ctx = c.ctx(s, n, i)
						}
						// The first call of a session, answered: now it is sure of its server.
						if r, err := p.Pick(infos[i]); err == nil && r.Done != nil {
							r.Done(balancer.DoneInfo{BytesSent: true, BytesReceived: true})
						}
					}
					b.ReportAllocs()
					b.ResetTimer()
					run(b, p, infos)
				})
			}
			dropUnused(n, calls[i+1:]...)
		}
	}
}

type warmKey struct {
	subject
	n int
}

// kept are the rigs of benchmarks that leave them as they were, with a table of homes. To
// bring one up is slow under some policies.
var kept = map[warmKey]*rig{}

func warm(b *testing.B, s subject, n int) *rig {
	k := warmKey{s, n}
	if kept[k] == nil {
		kept[k] = s.ready(b, n)
		if s.policy == ours.policy { // the first key has the table made, aside
			p, _ := kept[k].channel.newest()
			_, _ = p.Pick(balancer.PickInfo{Ctx: affinity.WithKey(bg, "first")})
			quiet()
		}
	}
	return kept[k]
}

func drop(s subject, n int) {
	if r := kept[warmKey{s, n}]; r != nil {
		r.lb.Close()
		delete(kept, warmKey{s, n})
	}
}

// dropUnused drops the rigs of n endpoints that none of these calls needs: each benchmark
// begins with a collection of garbage, which they make slow. Those of 1,000 are kept, for
// ring_hash takes seconds to bring them up.
func dropUnused(n int, next ...call) {
	for k := range kept {
		if k.n == n && n != 1000 && !slices.ContainsFunc(next, func(c call) bool { return slices.Contains(c.subjects, k.subject) }) {
			drop(k.subject, n)
		}
	}
}
