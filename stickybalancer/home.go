package stickybalancer

import (
	"math/bits"
	"sync"
)

// The order in which servers are home to a key is weighted rendezvous hashing
// (highest random weight: Thaler and Ravishankar, 1998; with weights: Schindelhauer
// and Schomaker, 2005). It depends on server ids, weights and the key alone, and
// is computed in integers, because Go may fuse floating-point operations on some
// architectures and two processes must never disagree.
//
// What follows is part of the wire contract. Golden vectors in the tests pin it.
//
//	hash(s)        = XXH64(s, seed 0)
//	slot(key)      = hash(key) >> 46                           (2^18 slots)
//	draw(slot, id) = mix(hash(id) ^ (slot+1) * 0x9E3779B97F4A7C15)
//	cost(slot, id) = -log2(draw / 2^64), fixed point with 32 fractional bits
//
// The home of a slot is the server with the least cost/weight; of two with the
// same, the one with the higher draw; then the one with the smaller id. Whether
// one server comes before another does not depend on any third, which is why a
// server that leaves or joins moves no key but its own.
const (
	slotBits  = 18
	slotCount = 1 << slotBits
	slotStep  = 0x9E3779B97F4A7C15 // 2^64 divided by the golden ratio
)

// slotOf returns the slot of a key by its hash.
func slotOf(hash uint64) uint32 { return uint32(hash >> (64 - slotBits)) }

// draw returns the number that a server draws for a slot. mix is the finalizer
// of SplitMix64 (Steele, Lea and Flood, 2014).
func draw(slot uint32, idHash uint64) uint64 {
	x := idHash ^ (uint64(slot)+1)*slotStep
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}

// rank is a server's place in the order of one slot.
type rank struct {
	draw   uint64
	weight uint32
	id     string
}

// before reports whether a is home sooner than b.
func (a rank) before(b rank) bool {
	if a.weight != b.weight {
		// cost(a)/weight(a) < cost(b)/weight(b), without a division
		ah, al := bits.Mul64(cost(a.draw), uint64(b.weight))
		bh, bl := bits.Mul64(cost(b.draw), uint64(a.weight))
		if ah != bh {
			return ah < bh
		}
		if al != bl {
			return al < bl
		}
	}
	// With one weight the least cost is the highest draw: no logarithm needed.
	if a.draw != b.draw {
		return a.draw > b.draw
	}
	return a.id < b.id
}

const logSteps = 10 // the logarithm is tabulated at 2^logSteps points

// cost returns -log2(draw/2^64) with 32 fractional bits, linear between the
// points of logTable. It never grows with draw.
func cost(draw uint64) uint64 {
	if draw == 0 {
		draw = 1
	}
	zeros := bits.LeadingZeros64(draw)
	frac := draw << zeros << 1 // draw = 2^(63-zeros) * (1 + frac/2^64)
	table := logTable()
	i := frac >> (64 - logSteps)
	rem := frac << logSteps >> 32
	log := table[i] + (table[i+1]-table[i])*rem>>32
	return uint64(zeros+1)<<32 - log
}

// logTable holds log2(1 + i/2^logSteps) with 32 fractional bits, truncated.
// One bit of a binary logarithm is whether the square is 2 or more.
var logTable = sync.OnceValue(func() *[1<<logSteps + 1]uint64 {
	var table [1<<logSteps + 1]uint64
	for i := range 1 << logSteps {
		x := uint64(1)<<63 + uint64(i)<<(63-logSteps) // 63 fractional bits
		for range 32 {
			hi, lo := bits.Mul64(x, x) // hi has 62
			table[i] <<= 1
			if hi>>63 == 1 {
				table[i]++
				x = hi
			} else {
				x = hi<<1 | lo>>63
			}
		}
	}
	table[1<<logSteps] = 1 << 32
	return &table
})
