package stickybalancer

import (
	"math/bits"
	"slices"
)

// members is a list of servers that pickers share until it changes.
type members struct {
	byIndex []*server
	conns   []readyPointer // by index; written in place
	list    []*server      // known ones

	// ids is a hash table with open addressing. At least half of it is free. A map
	// would hash the id anew for each call, whose context knows the hash already.
	ids  []idEntry
	mask uint64 // len(ids)-1
}

type idEntry struct {
	hash   uint64
	server *server // nil if free
}

func newMembers(servers map[string]*server, byIndex []*server, conns []readyPointer) *members {
	size := 1 << bits.Len(uint(2*len(servers)))
	m := &members{
		byIndex: slices.Clone(byIndex),
		conns:   conns,
		ids:     make([]idEntry, size),
		mask:    uint64(size - 1),
	}
	for _, s := range servers {
		i := s.hash & m.mask
		for m.ids[i].server != nil {
			i = (i + 1) & m.mask
		}
		m.ids[i] = idEntry{s.hash, s}
		if s.known() {
			m.list = append(m.list, s)
		}
	}
	return m
}

// byID returns the server of an id, by its hash; nil if there is none.
func (m *members) byID(hash uint64, id string) *server {
	for i := hash & m.mask; ; i = (i + 1) & m.mask {
		e := &m.ids[i]
		if e.server == nil {
			return nil
		}
		if e.hash == hash && e.server.id == id {
			return e.server
		}
	}
}
