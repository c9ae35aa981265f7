package stickybalancer

import (
	"sync/atomic"

	"google.golang.org/grpc/balancer"

	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/session"
)

// readyConn is a READY connection of which a pick has nothing more to say: nobody
// counts its calls, and there is no picker of pick_first's to be asked. It holds as
// little as can be, so that those of many servers fit into the nearest cache.
type readyConn struct {
	balancer.SubConn
	place *session.Place
}

type readyPointer = atomic.Pointer[readyConn]

// readyConn returns where the short cut of a pick may end, nil if v has more to say.
func (v *view) readyConn() *readyConn {
	if t := &v.target; v.phase == ready && t.conn != nil && t.aside == nil {
		return &readyConn{t.conn.SubConn, t.place}
	}
	return nil
}

// Pick implements [balancer.Picker]. What is written out here is a short cut for most
// calls: those whose server is READY, and of which nobody needs to know more. It
// is never another way than pick, which takes the rest, and three times as long.
//
// It is written for speed: each load depends on few others, and nothing is called
// that is not inlined, but for the search of an id.
func (p *picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	var c *readyConn
	v := callctx.From(info.Ctx)
	kind := callctx.Nothing
	if v != nil {
		kind = v.Kind
	}
	switch kind {
	case callctx.Nothing:
		if p.bare != nil {
			c = p.bare.quick(p.turns)
		}
	case callctx.Marked:
		if p.marked != nil {
			c = p.marked.quick(p.turns)
		}
	case callctx.ByKey:
		c = p.homes.now.Load().quick(v.Hash)
	case callctx.BySession:
		if st := v.Session.Quick(p.target); st != nil && st.Confirmed && st.Place != nil {
			if i := uint(st.Place.Index); i < uint(len(p.members.conns)) {
				if at := p.members.conns[i].Load(); at != nil && at.place == st.Place {
					c = at
				}
			}
		}
	case callctx.ByID:
		if s := p.members.byID(v.IDHash, v.ID); s != nil {
			c = s.conn.Load()
		}
	}
	if c != nil {
		return balancer.PickResult{SubConn: c.SubConn}, nil
	}
	return p.pick(info, v)
}

// quickly is the short cut of Pick, for those to whom a call more is nothing. nothing is
// the ring for a call without affinity, nil if it has to be looked at further.
func (p *picker) quickly(v *callctx.Value, nothing *ring) *readyConn {
	kind := callctx.Nothing
	if v != nil {
		kind = v.Kind
	}
	switch kind {
	case callctx.Nothing:
		if nothing != nil {
			return nothing.quick(p.turns)
		}
	case callctx.Marked:
		if p.marked != nil {
			return p.marked.quick(p.turns)
		}
	case callctx.ByKey:
		return p.homes.now.Load().quick(v.Hash)
	case callctx.BySession:
		if st := v.Session.Quick(p.target); st != nil && st.Confirmed && st.Place != nil {
			if i := uint(st.Place.Index); i < uint(len(p.members.conns)) {
				if at := p.members.conns[i].Load(); at != nil && at.place == st.Place {
					return at
				}
			}
		}
	case callctx.ByID:
		if s := p.members.byID(v.IDHash, v.ID); s != nil {
			return s.conn.Load()
		}
	}
	return nil
}

// quickReasons are why calls go where the short cut sends them.
var quickReasons = [...]callctx.Reason{
	callctx.Nothing:   callctx.RoundRobin,
	callctx.Marked:    callctx.RoundRobin,
	callctx.ByKey:     callctx.Home,
	callctx.BySession: callctx.Session,
	callctx.ByID:      callctx.ID,
}

// counted is a picker whose picks are counted. It is another type, so that those who
// count nothing need not be asked whether they do.
type counted struct{ *picker }

func (p counted) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	v := callctx.From(info.Ctx)
	if c := p.quickly(v, p.bare); c != nil {
		p.meter.quick(info, v)
		return balancer.PickResult{SubConn: c.SubConn}, nil
	}
	return p.pick(info, v)
}

// quick counts a pick that took the short cut.
func (m *meter) quick(info balancer.PickInfo, v *callctx.Value) {
	why := callctx.RoundRobin
	if v != nil {
		why = quickReasons[v.Kind]
	}
	m.picked(info.Ctx, why, nil)
}

// quick is next where all shares are the same, and nil elsewhere.
func (r *ring) quick(c *counter) *readyConn {
	a := r.array.Load()
	if n := a.n.Load(); n != 0 && !a.aside.Load() {
		return a.conns[c.n.Add(1)%n].Load()
	}
	return nil
}

// quick is homeBook.at for most calls, and nil for the others.
func (h *homes) quick(hash uint64) *readyConn {
	if h.slots == nil {
		return nil
	}
	return h.conns[atomic.LoadUint32(&h.slots[slotOf(hash)])].Load()
}
