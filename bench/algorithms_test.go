package bench

import (
	"math"

	"github.com/homing-grpc/homing/internal/callctx"
)

// maglev is the table of Maglev (Eisenbud and others, 2016), section 3.4: servers
// take turns to claim the next free entry in an order of their own.
type maglev struct {
	servers []string
	entries [65537]uint16
}

func (m *maglev) fill() {
	const size = uint64(len(m.entries))
	type turn struct{ next, step uint64 }
	turns := make([]turn, len(m.servers))
	for i, s := range m.servers {
		turns[i] = turn{callctx.Hash(s) % size, callctx.Hash(s+"#")%(size-1) + 1}
	}
	const free = math.MaxUint16
	for i := range m.entries {
		m.entries[i] = free
	}
	for claimed := 0; ; {
		for i := range turns {
			t := &turns[i]
			for m.entries[t.next] != free {
				t.next = (t.next + t.step) % size
			}
			m.entries[t.next] = uint16(i)
			if claimed++; claimed == len(m.entries) {
				return
			}
		}
	}
}

func (m *maglev) home(key string) string {
	return m.servers[m.entries[callctx.Hash(key)%uint64(len(m.entries))]]
}

func maglevOf(servers []string) func(string) string {
	m := &maglev{servers: servers}
	m.fill()
	return m.home
}

// hrw is rendezvous hashing as it is in textbooks: each lookup asks all servers.
type hrw struct {
	servers []string
	hashes  []uint64
}

func (h *hrw) hash() {
	h.hashes = make([]uint64, len(h.servers))
	for i, s := range h.servers {
		h.hashes[i] = callctx.Hash(s)
	}
}

func (h *hrw) home(key string) string {
	k := callctx.Hash(key)
	best, most := 0, uint64(0)
	for i, s := range h.hashes {
		x := (k ^ s) * 0x9E3779B97F4A7C15
		x = (x ^ x>>32) * 0xD6E8FEB86659FD93
		if x ^= x >> 32; x > most {
			best, most = i, x
		}
	}
	return h.servers[best]
}

func hrwOf(servers []string) func(string) string {
	h := &hrw{servers: servers}
	h.hash()
	return h.home
}
