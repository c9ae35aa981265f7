package bench

import (
	"fmt"
	"testing"

	"google.golang.org/grpc/balancer"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/callctx"
)

var manyKeys = func() (keys [1 << 16]string) {
	for i := range keys {
		keys[i] = fmt.Sprint("user:", i*7919)
	}
	return keys
}()

// newKeys makes each call by another key: its hash is computed, as it is when
// a context is made, but there is only one context.
func newKeys() func() balancer.PickInfo {
	info := balancer.PickInfo{Ctx: affinity.WithKey(bg, "k"), FullMethodName: "/bench/Call"}
	v := callctx.From(info.Ctx)
	i := uint16(0)
	return func() balancer.PickInfo {
		i++
		v.Key = manyKeys[i]
		v.Hash = callctx.Hash(v.Key)
		return info
	}
}

// lookups find the home of another key each time, hashing included: a pick of ours by a
// context whose hash is made for each call, and data structures of others, with the same
// hash function and no policy around them. The first is what to compare with: a pick of
// round_robin, for a call without a key.
var lookups = []struct {
	label string
	most  int // servers that it affords: some sort their ring whole for each that is added
	start func(b *testing.B, n int) func() func()
}{
	{"round_robin", 10_000, picking(roundRobin)},
	{"homing", 10_000, picking(ours)},
	{"authzed", 100, looking(authzedOf)},
	{"go-zero", 100, looking(goZeroOf)},
	{"go-rendezvous", 10_000, looking(rendezvousOf)},
	{"maglev-64k", 10_000, looking(maglevOf)},
	{"hrw", 10_000, looking(hrwOf)},
}

// BenchmarkLookup is one of them, alone.
func BenchmarkLookup(b *testing.B) {
	eachLookup(b, func(b *testing.B, caller func() func()) {
		find := caller()
		for b.Loop() {
			find()
		}
	})
}

// BenchmarkLookupParallel is BenchmarkLookup on all cores at once.
func BenchmarkLookupParallel(b *testing.B) {
	eachLookup(b, func(b *testing.B, caller func() func()) {
		b.RunParallel(func(pb *testing.PB) {
			find := caller()
			for pb.Next() {
				find()
			}
		})
	})
}

func eachLookup(b *testing.B, run func(b *testing.B, caller func() func())) {
	for _, n := range sizes {
		for _, l := range lookups {
			if n > l.most {
				continue
			}
			var caller func() func()
			b.Run(fmt.Sprintf("n=%d/way=%s", n, l.label), func(b *testing.B) {
				if caller == nil {
					caller = l.start(b, n)
				}
				b.ReportAllocs()
				b.ResetTimer()
				run(b, caller)
			})
		}
		dropUnused(n)
	}
}

func picking(s subject) func(*testing.B, int) func() func() {
	return func(b *testing.B, n int) func() func() {
		p, _ := warm(b, s, n).channel.newest()
		warmHomes(s, warm(b, s, n))
		return func() func() {
			call := newKeys()
			return func() { _, _ = p.Pick(call()) }
		}
	}
}

func looking(build func(servers []string) func(string) string) func(*testing.B, int) func() func() {
	return func(_ *testing.B, n int) func() func() {
		home := build(addresses(n))
		return func() func() {
			i, found := uint16(0), ""
			return func() {
				i++
				found = home(manyKeys[i])
				_ = found
			}
		}
	}
}
