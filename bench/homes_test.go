package bench

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc/balancer"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/callctx"
)

// homeCalls are the calls by key. round_robin, with calls that have none, is what
// they are compared with.
var homeCalls = []struct {
	call     string
	subjects []subject
	caller   func() func() balancer.PickInfo
}{
	{"none", []subject{roundRobin}, func() func() balancer.PickInfo {
		info := balancer.PickInfo{Ctx: bg, FullMethodName: "/bench/Call"}
		return func() balancer.PickInfo { return info }
	}},
	{"key-ctx", []subject{ours}, inTurn(func(k string) context.Context { return affinity.WithKey(bg, k) })},
	{"key-ctx-new", []subject{ours}, newKeys},
	{"key-ctx-authzed", []subject{authzed}, inTurn(authzedKey)},
	{"key-metadata", []subject{ringHash, ringHash64k, ours}, inTurn(keyHeader)},
}

// inTurn makes calls by 256 keys in turn.
func inTurn(ctx func(key string) context.Context) func() func() balancer.PickInfo {
	var infos [256]balancer.PickInfo
	for i := range infos {
		infos[i] = balancer.PickInfo{Ctx: ctx(fmt.Sprint("room-", i)), FullMethodName: "/bench/Call"}
	}
	return func() func() balancer.PickInfo {
		i := uint8(0)
		return func() balancer.PickInfo { i++; return infos[i] }
	}
}

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

// BenchmarkHome is a pick by key: all endpoints are READY, and each slot has
// been asked for before.
func BenchmarkHome(b *testing.B) {
	eachHome(b, func(b *testing.B, p balancer.Picker, caller func() func() balancer.PickInfo) {
		call := caller()
		for b.Loop() {
			if _, err := p.Pick(call()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkHomeParallel is BenchmarkHome on all cores at once.
func BenchmarkHomeParallel(b *testing.B) {
	eachHome(b, func(b *testing.B, p balancer.Picker, caller func() func() balancer.PickInfo) {
		b.RunParallel(func(pb *testing.PB) {
			call := caller()
			for pb.Next() {
				if _, err := p.Pick(call()); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

func eachHome(b *testing.B, run func(b *testing.B, p balancer.Picker, caller func() func() balancer.PickInfo)) {
	for _, n := range sizes {
		for _, c := range homeCalls {
			for _, s := range c.subjects {
				if !s.affords(n) || s == authzed && n > 100 {
					continue
				}
				b.Run(fmt.Sprintf("n=%d/call=%s/policy=%s", n, c.call, s.label), func(b *testing.B) {
					p, _ := warm(b, s, n).channel.newest()
					for call, i := c.caller(), 0; i < len(manyKeys); i++ {
						if _, err := p.Pick(call()); err != nil {
							b.Fatal(err)
						}
					}
					b.ReportAllocs()
					b.ResetTimer()
					run(b, p, c.caller)
				})
			}
		}
	}
}
