package stickybalancer

import (
	"slices"

	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/session"
)

// refusals are the servers that have refused a call, by their ids or, for one that goes
// by its session, by their starts.
type refusals struct {
	ids    []string
	places []*session.Place
}

func (r refusals) empty() bool { return len(r.ids) == 0 && len(r.places) == 0 }

func (r refusals) have(id string, at *session.Place) bool {
	return slices.Contains(r.ids, id) ||
		slices.ContainsFunc(r.places, func(p *session.Place) bool { return at != nil && p.Same(at) })
}

// choosePast is chooseHome for a call that servers may have refused.
func (p *picker) choosePast(v *callctx.Value) choice {
	return p.chooseHomePast(v.Hash, refusals{ids: v.Not})
}

// chooseAfter is chooseHome for a session that is to leave its server.
func (p *picker) chooseAfter(v *callctx.Value, st *session.State) choice {
	return p.chooseHomePast(lostHash(v, st), refusals{places: st.Not})
}

// chooseHomePast serves a call that servers have refused as if those were gone. When all
// have, one of them may have changed its mind.
func (p *picker) chooseHomePast(hash uint64, not refusals) choice {
	if !not.empty() {
		if v := p.homes.now.Load().past(slotOf(hash), not); v != nil {
			return v.choose(callctx.Rehomed)
		}
	}
	return p.chooseHome(hash)
}

// past finds the home of slot among servers that have not refused. Of what has happened
// to those, others that the list has lost are suspect, too; and clients that never knew
// them choose among the listed ones.
func (h *homes) past(slot uint32, not refusals) *view {
	var home *view
	var best rank
	for _, s := range h.members.list {
		v := s.view.Load()
		if !v.known || v.phase == away || not.have(s.id, v.target.place) {
			continue
		}
		r := rank{draw(slot, s.hash), v.weight, s.id}
		if home == nil || v.suspect() < home.suspect() || v.suspect() == home.suspect() && r.before(best) {
			home, best = v, r
		}
	}
	return home
}

// suspect is how little the server is fit to take what others have refused.
func (v *view) suspect() int {
	n := 0
	if v.kept {
		n++
	}
	if v.draining {
		n += 2
	}
	return n
}
