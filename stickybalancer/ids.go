package stickybalancer

import "slices"

// idTable finds servers by their ids: a hash table with open addressing, of which at least
// half is free. A map would hash the id anew for each call, whose context knows the hash
// already. The zero value is empty.
type idTable struct {
	entries []idEntry
	n       int // in use
}

type idEntry struct {
	hash   uint64
	server *server // nil if free
}

// get returns the server of an id, by its hash; nil if there is none.
func (t *idTable) get(hash uint64, id string) *server {
	if len(t.entries) == 0 {
		return nil
	}
	mask := uint64(len(t.entries) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		e := &t.entries[i]
		if e.server == nil {
			return nil
		}
		if e.hash == hash && e.server.id == id {
			return e.server
		}
	}
}

// clone returns a copy, which is smaller if most servers have been removed.
func (t *idTable) clone() idTable {
	if len(t.entries) <= 16*max(t.n, 4) {
		return idTable{slices.Clone(t.entries), t.n}
	}
	var c idTable
	for _, e := range t.entries {
		if e.server != nil {
			c.put(e.server)
		}
	}
	return c
}

// put adds a server whose id is new.
func (t *idTable) put(s *server) {
	if 2*(t.n+1) > len(t.entries) {
		old := t.entries
		t.entries, t.n = make([]idEntry, max(4, 2*len(old))), 0
		for _, e := range old {
			if e.server != nil {
				t.put(e.server)
			}
		}
	}
	t.entries[t.slot(s.hash)] = idEntry{s.hash, s}
	t.n++
}

// slot returns where the search for a hash ends that is not there.
func (t *idTable) slot(hash uint64) uint64 {
	mask := uint64(len(t.entries) - 1)
	i := hash & mask
	for t.entries[i].server != nil {
		i = (i + 1) & mask
	}
	return i
}

// remove takes a server out. Those behind it move up, or searches would end at the gap.
func (t *idTable) remove(s *server) {
	mask := uint64(len(t.entries) - 1)
	gap := s.hash & mask
	for t.entries[gap].server != s {
		gap = (gap + 1) & mask
	}
	t.n--
	for i := (gap + 1) & mask; ; i = (i + 1) & mask {
		e := t.entries[i]
		if e.server == nil {
			t.entries[gap] = idEntry{}
			return
		}
		if home := e.hash & mask; (i-home)&mask >= (i-gap)&mask {
			t.entries[gap], gap = e, i
		}
	}
}
