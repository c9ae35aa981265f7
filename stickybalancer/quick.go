package stickybalancer

import (
	"sync/atomic"

	"github.com/homing-grpc/homing/internal/callctx"
)

// quick returns where a call goes whose server is READY, and of which nobody
// needs to know more: most calls. For all others it returns nil. It is a short cut
// through choose, which takes three times as long, and never another way.
func (p *picker) quick(v *callctx.Value) *target {
	switch {
	case v == nil:
		if p.headers {
			return nil
		}
		return p.quickNext()
	case v.Route != nil || v.Moved || len(v.Not) > 0:
		return nil
	case v.ID != "":
		if s := p.members.byID[v.ID]; s != nil {
			return s.view.Load().readyTarget()
		}
		return nil
	case v.Session != nil:
		return p.quickSession(v)
	case v.Key != "":
		home := p.homes.now.Load().quick(slotOf(v.Hash))
		if home == nil || home.target.load != nil {
			return nil
		}
		return home.readyTarget()
	case p.headers && !(v.NoHeaders && p.trustMarks):
		return nil
	}
	return p.quickNext()
}

func (p *picker) quickNext() *target {
	if p.ring == nil || p.wake != nil {
		return nil
	}
	s := p.ring.next(p.turns)
	if s == nil {
		return nil
	}
	return &s.target
}

// quickSession serves a session that is sure of its server.
func (p *picker) quickSession(v *callctx.Value) *target {
	st := v.Session.Bind(p.target).Load()
	if st == nil || !st.Confirmed || st.Place == nil {
		return nil
	}
	if s, sv := p.members.at(st.Place); s != nil && sv.target.place.Same(st.Place) {
		return sv.readyTarget()
	}
	return nil
}

func (v *view) readyTarget() *target {
	if v.phase != ready {
		return nil
	}
	return &v.target
}

// quick is homeBook.at for most calls, nil for the others.
func (h *homes) quick(slot uint32) *view {
	if h.slots == nil {
		return nil
	}
	s := &h.seats[atomic.LoadUint32(&h.slots[slot])]
	v := s.server.view.Load()
	if v.home != s.weight {
		return nil
	}
	return v
}
