package bench

import (
	"fmt"
	"testing"
	"unsafe"

	"google.golang.org/grpc/balancer"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/callctx"
)

// BenchmarkMemory is what a policy holds of one READY endpoint that no call has gone to:
// what a channel of n takes, without the list and the connections, over n.
func BenchmarkMemory(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		for _, s := range []subject{roundRobin, weightedRobin, leastRequest, theRecipe, ours, floor} {
			if !s.affords(n) {
				continue
			}
			b.Run(fmt.Sprintf("n=%d/policy=%s", n, s.label), func(b *testing.B) {
				state := list(n)
				var least int
				for b.Loop() {
					held := heap()
					r := s.start(b)
					r.bringUp(b, state)
					held = heap() - held - connsOf(r)
					if least == 0 || held < least {
						least = held
					}
					r.lb.Close()
				}
				b.ReportMetric(float64(least)/float64(n), "B/endpoint")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// connsOf is the size of the connections that the policy was given.
func connsOf(r *rig) int {
	one, pointer := int(unsafe.Sizeof(conn{})), int(unsafe.Sizeof(uintptr(0)))
	return len(r.channel.conns)*one + pointer*(cap(r.channel.conns)+cap(r.channel.wanted))
}

// everySlot is a call by a key of every slot there is, in turn: a slot is the first bits
// of a hash.
func everySlot(call func(slot int, info balancer.PickInfo)) {
	info := balancer.PickInfo{Ctx: affinity.WithKey(bg, "k")}
	v := callctx.From(info.Ctx)
	for slot := range slots {
		v.Hash = uint64(slot) << (64 - 18)
		call(slot, info)
	}
}

const slots = 1 << 18
