package faults

// reached reports whether calls without affinity on c reach every server.
func (l *soakLoad) reached(c *soakChannel) bool {
	got := make(map[string]bool)
	for range 3 * len(l.ids) {
		by, err := l.call(c, anywhere())
		if err != nil || len(by.id) == 0 {
			return false
		}
		got[by.id] = true
	}
	return len(got) == len(l.ids) && !got[newcomer]
}

// sameHomes reports whether a key has the same home on all channels.
func (l *soakLoad) sameHomes() bool {
	for k := range soakKeys {
		var home string
		for _, c := range l.channels {
			by, err := l.call(c, byKey(k))
			if err != nil || home != "" && home != by.id {
				return false
			}
			home = by.id
		}
	}
	return true
}

// agree checks, when nothing is under way, that each session says what its moves add up
// to, and that it has been told of the process that is there.
func (l *soakLoad) agree(pids map[string]string) {
	for _, c := range l.channels {
		for i := range c.sessions {
			s := c.sessions[i].Load()
			s.mu.Lock()
			at := s.livesLocked()
			s.mu.Unlock()
			if id := s.ID(target); id != at.id || at.pid != pids[id] {
				l.book.violated("session %s says that it lives on %q, whose process is %s; but it was told of %v", s.name, id, pids[id], at)
			}
		}
	}
}
