package session

// MostRefused is how many servers a call is sent past, each of which has refused it.
const MostRefused = 3

// Refused makes the session leave the server, which has refused it, for any that has
// not, if it is there. was and at are as in [Binding.Answered].
func (b *Binding) Refused(was *State, at *Place) {
	for {
		now := b.state.Load()
		if now.place() == nil || (at == nil && now.since(was)) || (at != nil && !now.Place.is(at)) {
			return
		}
		if b.state.CompareAndSwap(now, now.refused()) {
			return
		}
	}
}

// refused is what becomes of a state of which the server has refused the session. When
// enough have, it lives where it did: that one may be the first to come back.
func (s *State) refused() *State {
	if len(s.Not) >= MostRefused || s.Passes(s.Place) {
		return s.before()
	}
	next := Tentative(s, nil, Moved)
	next.Not = append(s.Not[:len(s.Not):len(s.Not)], s.Place)
	return next
}

// Passes reports whether a session in this state is to pass by p, which has refused it.
func (s *State) Passes(p *Place) bool {
	for _, not := range s.Not {
		if p != nil && not.is(p) {
			return true
		}
	}
	return false
}

// Wanted returns the id of the server that the session is about, if that is known to go
// by it itself, and else "": it may be that of a proxy.
func (s *State) Wanted() string {
	p := s.held()
	if p == nil && s != nil && len(s.Not) > 0 {
		p = s.Not[0]
	}
	if p == nil || p.marks.Load()&signs == 0 {
		return ""
	}
	return p.ID
}

// Signed notes that a server that is at p has signed its answer with that name.
func (p *Place) Signed(name string) {
	if name == p.ID && p.marks.Load()&signs == 0 {
		p.marks.Or(signs)
	}
}
