package stickybalancer

// members is a list of servers that pickers share until it changes.
type members struct {
	byIndex []*server
	conns   []readyPointer // by index; written in place
	list    []*server      // known ones
	ids     idTable
	bare    bool // there are known ones, and their ids are but addresses
}

func newMembers(ids idTable, byIndex []*server, conns []readyPointer) *members {
	m := &members{byIndex: byIndex, conns: conns, list: make([]*server, 0, ids.n), ids: ids}
	named := false
	for _, s := range byIndex {
		if s != nil && s.known() {
			m.list = append(m.list, s)
			named = named || s.place == nil || !s.place.Bare()
		}
	}
	m.bare = !named && len(m.list) > 0
	return m
}

// byID returns the server of an id, by its hash; nil if there is none.
func (m *members) byID(hash uint64, id string) *server { return m.ids.get(hash, id) }
