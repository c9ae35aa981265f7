package stickybalancer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta"
)

// minGone is how many servers that have left are remembered at least.
const minGone = 64

// applyLocked takes in what is new in a list, and returns the calls to children that
// this takes, to be made under no lock.
func (p *policy) applyLocked(news news, now time.Time, newConfig, newAttrs bool) (work []func()) {
	if p.changed = p.changed || newConfig; newConfig {
		for s := range p.serversLocked() {
			s.foreign = p.cfg.foreign(endpointsmeta.FromEndpoint(s.endpoint).Zone)
		}
	}
	want, leaving := news.want, news.leaving
	membership := len(leaving) > 0

	touched := make([]*server, 0, 8)

	kept := p.keptLocked(want)

	// Who comes back late is to learn why its server left, so some are remembered.
	if p.ids.n-news.listed > news.listed+minGone && p.forgetGoneLocked(news.listed) {
		membership = true
	}

	heirless := make(map[string]*server) // by address
	for _, s := range slices.Concat(kept, leaving) {
		heirless[addressKey(s.endpoint)] = s
	}
	taken := make(map[string]bool) // addresses of those that are now another's

	lazy := p.cfg.lazy
	for _, l := range want {
		s := p.server(l.meta.ID)
		if s == nil {
			s = p.newServerLocked(l.meta.ID)
		}
		if !s.listed || !endpointsmeta.FromEndpoint(s.endpoint).Equal(l.meta) {
			touched = append(touched, s)
		}
		if !s.listed {
			membership = true
			// A return is a new start, whether or not we remember the old end.
			s.lost = false
		}
		s.listed, s.keep = true, nil
		s.describe(l, p.cfg)
		if len(heirless) > 0 {
			address := addressKey(l.endpoint)
			if from := heirless[address]; from != nil {
				taken[address] = true
				if s.child == nil {
					p.inheritLocked(s, from)
				}
			}
		}
		old := s.endpoint
		s.endpoint = l.endpoint
		switch {
		case s.child == nil:
			work = append(work, p.newChildLocked(s, lazy))
		case s.startedAgain(old, l.endpoint): // a new child does not sit out the old one's backoff
			stale := s.child
			work = append(work, stale.close, p.newChildLocked(s, lazy))
			touched = append(touched, s)
		case sameAddresses(old, l.endpoint) && !newAttrs && !newConfig:
		case p.continuesLocked(s, old, l.endpoint):
			c, state := s.child, p.stateFor(s)
			work = append(work, func() {
				c.update(state, lazy)
				if !lazy {
					c.connect() // it may be idle from when it was lazy
				}
			})
		default:
			stale := s.child
			s.live, s.unhealthy, s.tried = nil, false, false
			p.beginOutageLocked(s, now)
			work = append(work, stale.close, p.newChildLocked(s, lazy))
			touched = append(touched, s)
		}
	}
	for _, s := range leaving {
		touched = append(touched, s)
		if c := p.leftLocked(s, now, taken[addressKey(s.endpoint)]); c != nil {
			work = append(work, c.close)
		}
	}
	for _, s := range kept {
		if taken[addressKey(s.endpoint)] {
			touched = append(touched, s)
			if c := p.goneLocked(s, now); c != nil {
				work = append(work, c.close)
			}
		}
	}
	p.listErr = nil
	if news.listed == 0 {
		p.listErr = fmt.Errorf("the resolver's list for %q is empty", p.target.Value())
	}
	if membership {
		p.membersLocked()
	}
	if p.chooseLocked() || newConfig {
		for s := range p.serversLocked() {
			p.refreshLocked(s)
		}
	} else {
		for _, s := range touched {
			p.refreshLocked(s)
		}
	}
	p.spreadAgainIfLocked()
	// A resolver that sorts must not make all channels connect in one order.
	rand.Shuffle(len(work), func(i, j int) { work[i], work[j] = work[j], work[i] })
	return work
}

func (p *policy) newServerLocked(id string) *server {
	p.unshareLocked()
	i := int32(len(p.byIndex))
	if n := len(p.free); n > 0 {
		i, p.free = p.free[n-1], p.free[:n-1]
	} else {
		p.byIndex = append(p.byIndex, nil)
		if n := len(p.conns); int(i) == n {
			conns := make([]readyPointer, 2*n+8) // old pickers keep the old ones
			for j := range p.conns {
				conns[j].Store(p.conns[j].Load())
			}
			p.conns = conns
		}
	}
	s := newServer(id, i)
	p.byIndex[i] = s
	p.ids.put(s)
	return s
}

// keptLocked returns the servers that are kept and are not in want.
func (p *policy) keptLocked(want []listed) (kept []*server) {
	for _, k := range p.keeping {
		if s := k.server; s.keep == k {
			kept = append(kept, s)
		}
	}
	if len(kept) == 0 {
		return nil
	}
	back := make(map[string]struct{}, len(want))
	for _, l := range want {
		back[l.meta.ID] = struct{}{}
	}
	return slices.DeleteFunc(kept, func(s *server) bool {
		_, is := back[s.id]
		return is
	})
}

// forgetGoneLocked forgets the servers that are gone, if they are too many.
func (p *policy) forgetGoneLocked(listed int) bool {
	var gone []*server
	for s := range p.serversLocked() {
		if !s.known() && s.lost && p.settled {
			gone = append(gone, s)
		}
	}
	if len(gone) <= listed+minGone {
		return false
	}
	for _, s := range gone {
		p.forgetLocked(s)
	}
	return true
}

func (p *policy) forgetLocked(s *server) {
	p.unshareLocked()
	p.ids.remove(s)
	p.byIndex[s.index] = nil
	p.conns[s.index].Store(nil)
	p.free = append(p.free, s.index)
}

// inheritLocked gives s the READY connection of a server that leaves the list, or has
// left it and is kept, at the same address: the same server under another id.
func (p *policy) inheritLocked(s, from *server) {
	if from == nil || from.live == nil {
		return
	}
	s.child, s.endpoint, s.failure = from.child, from.endpoint, from.failure
	s.live, s.unhealthy, s.tried = from.live, from.unhealthy, from.tried
	s.child.server = s
	if s.live != nil {
		s.outage, s.lost = nil, false
	}
	from.child, from.live, from.unhealthy = nil, nil, false
}

// newChildLocked gives s a child and returns the call that starts it. Under LAZY it
// is idle, which is no outage: the call that picks it connects it.
func (p *policy) newChildLocked(s *server, lazy bool) func() {
	if lazy {
		s.outage, s.lost = nil, false
	}
	c := &child{parent: p.parent, server: s}
	s.child, s.tried = c, false
	state := p.stateFor(s)
	return func() { c.update(state, lazy) }
}

// stateFor is the resolver state that the child of s sees: one endpoint.
func (p *policy) stateFor(s *server) resolver.State {
	state := p.attrs
	state.Endpoints = []resolver.Endpoint{s.endpoint}
	return state
}

// continuesLocked reports whether the child of s can take the new addresses: it
// can as long as it need not give up a READY connection. Otherwise a new child
// starts with a clean record, for pick_first calls itself failing until a
// connection succeeds (gRFC A62).
func (p *policy) continuesLocked(s *server, old, now resolver.Endpoint) bool {
	if len(old.Addresses) == len(now.Addresses) {
		same := true
		for _, a := range old.Addresses {
			same = same && slices.ContainsFunc(now.Addresses, func(b resolver.Address) bool { return a.Addr == b.Addr })
		}
		if same {
			return true
		}
	}
	return s.live != nil && slices.ContainsFunc(now.Addresses, func(b resolver.Address) bool { return b.Addr == s.live.addr })
}

// leftLocked takes s out of the list, and returns its child if it is to close.
// A living server that the list lost, without a goodbye, is kept for a while:
// it may be the list that failed. replaced says that another has its address.
func (p *policy) leftLocked(s *server, now time.Time, replaced bool) *child {
	s.listed = false
	if s.live != nil && !replaced && !s.draining && p.cfg.absentGrace > 0 {
		s.keep = &keep{server: s, since: now}
		p.keeping = append(p.keeping, s.keep)
		if len(p.keeping) > 2*p.ids.n+16 {
			p.keeping = slices.DeleteFunc(p.keeping, func(k *keep) bool { return k.server.keep != k })
		}
		p.log.infof("keeping server %q, which left the list: its connection is READY", s.id)
		return nil
	}
	return p.goneLocked(s, now)
}

// goneLocked ends what is known of s, and returns its child, to be closed.
func (p *policy) goneLocked(s *server, now time.Time) *child {
	s.listed, s.keep = false, nil
	c := s.child
	s.child, s.live, s.unhealthy = nil, nil, false
	s.tried = true // by "0s" an absent server is not waited for
	if s.draining {
		s.outage, s.lost = nil, true
	} else {
		p.beginOutageLocked(s, now)
	}
	return c
}

// membersLocked renews what pickers see of the list.
func (p *policy) membersLocked() {
	p.members, p.shared = newMembers(p.ids, p.byIndex, p.conns), true
	p.changed = true
}

// chooseLocked settles what depends on the whole list: the greatest share, and
// which servers are for this channel's calls without affinity.
//
// It reports whether it changed any of that.
func (p *policy) chooseLocked() (changed bool) {
	sum, n := uint64(0), uint64(0)
	for _, s := range p.members.list {
		if s.known() {
			sum += uint64(s.weight)
			n++
		}
	}
	// All shares are cut anew when the limit changes: not with each weight that does.
	if n > 0 && (sum > 2*n*uint64(p.shareLimit) || 2*sum < n*uint64(p.shareLimit)) {
		p.shareLimit, changed = uint32((sum+n-1)/n), true
		for s := range p.serversLocked() {
			p.unringLocked(s)
		}
	}
	if p.cfg.subsetSize > 0 || p.hasSubset {
		p.chooseSubsetLocked()
		changed = true
	}
	return changed
}

// chooseSubsetLocked picks subsetSize servers of either kind, own zone and the
// others, by rendezvous with the channel's own seed (gRFC A68).
func (p *policy) chooseSubsetLocked() {
	p.hasSubset = p.cfg.subsetSize > 0
	var own, other []*server
	for s := range p.serversLocked() {
		s.inSubset = !p.hasSubset
		switch {
		case !s.listed || (s.draining && !p.allDrain):
		case !s.foreign:
			own = append(own, s)
		default:
			other = append(other, s)
		}
	}
	if !p.hasSubset {
		return
	}
	for _, group := range [][]*server{own, other} {
		slices.SortFunc(group, func(a, b *server) int {
			ra := rank{draw(0, a.hash^p.seed), a.weight, a.id}
			rb := rank{draw(0, b.hash^p.seed), b.weight, b.id}
			if ra.before(rb) {
				return -1
			}
			return 1
		})
		for _, s := range group[:min(len(group), p.cfg.subsetSize)] {
			s.inSubset = true
		}
	}
}
