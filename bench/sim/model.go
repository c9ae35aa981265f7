package sim

import "github.com/cespare/xxhash/v2"

// The order of servers for a slot, from the contract that stickybalancer/home.go
// publishes: servers of one weight come by the highest draw. Plain, and a computation of
// its own: what the policy keeps, derives and shares is measured by it.
const slotCount = 1 << 18

func hash(s string) uint64 { return xxhash.Sum64String(s) }

func slotOf(key string) uint32 { return uint32(hash(key) >> 46) }

// homesAmong returns the home of each slot, by asking every server that is in.
func homesAmong(servers []*server, in func(*server) bool) []int32 {
	var numbers []int32
	var hashes []uint64
	for _, s := range servers {
		if in(s) {
			numbers = append(numbers, s.number)
			hashes = append(hashes, s.hash)
		}
	}
	homes := make([]int32, slotCount)
	for slot := range homes {
		step := (uint64(slot) + 1) * 0x9E3779B97F4A7C15
		best, at := uint64(0), 0
		for i, h := range hashes {
			x := h ^ step
			x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
			x = (x ^ x>>27) * 0x94D049BB133111EB
			if x ^= x >> 31; x > best {
				best, at = x, i
			}
		}
		homes[slot] = numbers[at]
	}
	return homes
}
