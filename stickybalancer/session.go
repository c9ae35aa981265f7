package stickybalancer

import (
	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/session"
)

// chooseBySession serves a call whose session remembers its server, or is about to.
// A session that lives nowhere yet goes to the home of its key, or to the next server
// if it has none, and learns where that was.
func (p *picker) chooseBySession(v *callctx.Value) choice {
	b := v.Session.Bind(p.target)
	for {
		st := b.Load()
		if st == nil {
			c := p.chooseNew(v)
			if c.err != nil || p.learn(b, nil, "", &c) {
				return c
			}
			continue // another call was first: go where it went
		}
		if st.Place == nil {
			c := p.chooseAfter(v, st)
			if c.err != nil || p.learn(b, st, st.Reason, &c) {
				return c
			}
			continue
		}
		s, sv := p.members.at(st.Place)
		switch {
		case s == nil && !p.settled:
			return queue()
		case s == nil || sv.phase == away:
			if s == nil {
				p.nameless.note(p.members, st.Place.ID)
			}
			c := p.chooseAfter(v, st)
			if c.err != nil || p.learn(b, st, lostReason(s, sv), &c) {
				return c
			}
		case sv.phase != ready:
			return sv.choose(callctx.Session)
		case !sv.target.place.Same(st.Place):
			c := choice{target: &sv.target, why: callctx.Session}
			if p.learn(b, st, affinity.ReasonRestarted, &c) {
				return c
			}
		case st.Confirmed:
			return choice{target: &sv.target, why: callctx.Session, held: true}
		case unmet(st.Place, sv.target.place):
			c := choice{target: &sv.target, why: callctx.Moved}
			if p.learn(b, st, st.Reason, &c) {
				return c
			}
		default:
			if done := b.Join(st); done != nil {
				return choice{target: &sv.target, why: callctx.Session, done: done, refused: len(st.Not) > 0, held: st.Told}
			}
		}
	}
}

func (p *picker) chooseNew(v *callctx.Value) choice {
	if v.Key != "" {
		return p.chooseByKey(v.Hash)
	}
	return p.chooseNext()
}

// learn makes what was chosen the place of a session that still is in state old.
func (p *picker) learn(b *session.Binding, old *session.State, why session.Reason, c *choice) bool {
	return p.become(b, old, session.Tentative(old, c.target.place, why), c)
}

// become makes next the state of a session that still is in state old, and c its first
// attempt.
func (p *picker) become(b *session.Binding, old, next *session.State, c *choice) bool {
	if p.meter != nil {
		next.OnMove = p.meter.onMove
	}
	c.done, c.refused, c.held = b.Join(next), len(next.Not) > 0, next.Told
	return b.Change(old, next)
}

// learnMoved is learn for a session that its server has sent to another one.
func (p *picker) learnMoved(b *session.Binding, c *choice) {
	for {
		old := b.Load()
		if old != nil && old.Place != nil && old.Place.Same(c.target.place) {
			if old.Confirmed {
				return
			}
			if !unmet(old.Place, c.target.place) {
				if c.done = b.Join(old); c.done != nil {
					return
				}
				continue
			}
		}
		next := session.Tentative(old, c.target.place, session.Moved)
		next.Told = true
		if p.become(b, old, next, c) {
			return
		}
	}
}

// unmet reports whether less is known of a place, where a server said that the state is,
// than of the server that is at: which start it is, and who counts the move.
func unmet(pl, at *session.Place) bool { return pl.Index < 0 || pl.Incarnation != at.Incarnation }

// lostHash is the place in the rendezvous order of a session that has lost its
// server: that of its key, or of the server's id, so that all who were there meet
// again.
func lostHash(v *callctx.Value, st *session.State) uint64 {
	switch {
	case v.Key != "":
		return v.Hash
	case st.Prev != nil:
		return callctx.Hash(st.Prev.ID)
	case st.Place != nil:
		return callctx.Hash(st.Place.ID)
	}
	return callctx.Hash(st.Not[0].ID) // or it would have nowhere to leave
}

func lostReason(s *server, sv *view) session.Reason {
	switch {
	case s == nil:
		return affinity.ReasonGone
	case sv.known:
		return affinity.ReasonFailed
	case sv.draining:
		return affinity.ReasonDrained
	}
	return affinity.ReasonGone
}

// at returns the server of a place, nil if it is not known. A place that another
// policy made, or nobody, is found by its id.
func (m *members) at(pl *session.Place) (*server, *view) {
	if i := int(pl.Index); i >= 0 && i < len(m.byIndex) {
		if s := m.byIndex[i]; s != nil {
			if v := s.view.Load(); v.target.place == pl {
				return s, v
			}
		}
	}
	if s := m.byID(callctx.Hash(pl.ID), pl.ID); s != nil {
		return s, s.view.Load()
	}
	return nil, nil
}
