package stickybalancer

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/balancer"

	"github.com/homing-grpc/homing/internal/callctx"
)

// homes says where keys live. It is immutable, but for what it shares: slots of
// the table and views of servers. Servers whose place in the table is not what
// they are now are treated apart, so it is exact from the moment of a change:
// the table follows in its own time.
type homes struct {
	members *members
	table   *table             // nil before the first call by key
	slots   *[slotCount]uint32 // the table's, nil while they are not all there is to ask
	seats   []seat             // this policy's servers, by what slots hold
	conns   []readyPointer     // of the seats whose server is as the table has it; written in place
	added   []*server          // take keys, but not with the weight they have in the table, if any
}

// seat is a server in a table.
type seat struct {
	server *server
	weight uint32
}

// unknown is the seat of slots that are not filled: one that takes no keys.
var unknown = seat{newServer("", 0), 1}

func newHomes(m *members, t *table, seats []seat, conns []readyPointer, added []*server) *homes {
	h := &homes{members: m, table: t, seats: seats, conns: conns, added: added}
	if t != nil && len(added) == 0 {
		h.slots = &t.slots
	}
	return h
}

// addedAt returns the first in the order of slot of home and the added servers.
func (h *homes) addedAt(slot uint32, home *server, v *view) *view {
	best := rank{draw(slot, home.hash), v.home, home.id}
	for _, s := range h.added {
		if sv := s.view.Load(); sv.home > 0 {
			if r := (rank{draw(slot, s.hash), sv.home, s.id}); r.before(best) {
				v, best = sv, r
			}
		}
	}
	return v
}

// search finds a home without the table. It trusts nothing but the views, so
// that it is right in the midst of changes too.
func (h *homes) search(slot uint32) *view {
	var home *view
	var best rank
	open := false // somebody does not drain: who drains is passed over
	for _, s := range h.members.list {
		v := s.view.Load()
		if v.known && !v.draining && !open {
			open, home = true, nil
		}
		if !v.known || v.phase == away || (v.draining && open) {
			continue
		}
		r := rank{draw(slot, s.hash), v.weight, s.id}
		if home == nil || r.before(best) {
			home, best = v, r
		}
	}
	return home
}

// homeBook is what a policy keeps of its homes. All its pickers share it.
type homeBook struct {
	policy *policy
	now    atomic.Pointer[homes]
	wanted atomic.Bool // a call has come by key: from then on there is a table

	// Guarded by policy.mu.
	moved   []*server            // since now: as homes they are not what they were
	misfits map[*server]struct{} // are not as the table has them
	busy    bool                 // a goroutine is deriving a table

	stop chan struct{} // closed with the policy
	work sync.WaitGroup
}

func newHomeBook(p *policy) *homeBook {
	b := &homeBook{policy: p, misfits: make(map[*server]struct{}), stop: make(chan struct{})}
	b.now.Store(newHomes(p.members, nil, nil, nil, nil))
	return b
}

// at returns the view of the server that is home to slot, nil if there is none.
func (b *homeBook) at(slot uint32) *view {
	h := b.now.Load()
	if h.table == nil {
		b.want()
		return h.search(slot)
	}
	s := &h.seats[h.table.owner(slot)]
	v := s.server.view.Load()
	if v.home != s.weight {
		return h.search(slot)
	}
	if len(h.added) == 0 {
		return v
	}
	return h.addedAt(slot, s.server, v)
}

// want asks for a table, once, and does not wait for it.
func (b *homeBook) want() {
	if !b.wanted.Load() && b.wanted.CompareAndSwap(false, true) {
		go b.start()
	}
}

func (b *homeBook) start() {
	b.policy.mu.Lock()
	defer b.policy.mu.Unlock()
	b.policy.deriveLocked()
}

// homesLocked lets picks know who came, left or changed as a home. It comes
// before the picker that wakes those who wait for the change.
func (p *policy) homesLocked() {
	b := p.homes
	h := b.now.Load()
	if len(b.moved) == 0 && h.members == p.members {
		return
	}
	added := h.added
	if h.table != nil && len(b.moved) > 0 {
		for _, s := range b.moved {
			b.noteLocked(s, h.seats)
		}
		added = b.addedLocked()
	}
	b.moved = nil
	b.now.Store(newHomes(p.members, h.table, h.seats, h.conns, added))
	p.deriveLocked()
}

// noteLocked notes whether s is as seats have it.
func (b *homeBook) noteLocked(s *server, seats []seat) {
	weight := uint32(0)
	if s.seat > 0 {
		weight = seats[s.seat].weight
	}
	if s.view.Load().home == weight {
		delete(b.misfits, s)
	} else {
		b.misfits[s] = struct{}{}
	}
}

func (b *homeBook) addedLocked() (added []*server) {
	for s := range b.misfits {
		if s.view.Load().home > 0 {
			added = append(added, s)
		}
	}
	return added
}

func (b *homeBook) staleLocked() bool {
	return b.now.Load().table == nil || len(b.misfits) > 0
}

// deriveLocked sees to it that the table follows, if there is to be one.
func (p *policy) deriveLocked() {
	b := p.homes
	if b.wanted.Load() && !b.busy && !p.closed && b.staleLocked() {
		b.busy = true
		b.work.Go(p.derive)
	}
}

// deriveShare is the part of one core that tables may take in a burst of changes,
// and maxPause what that may delay a table by.
const (
	deriveShare = 1. / 10
	maxPause    = 100 * time.Millisecond
)

// derive replaces the table until it is what the servers are.
func (p *policy) derive() {
	b := p.homes
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed && b.staleLocked() {
		h := b.now.Load()
		seats := p.seatsLocked(h)
		if len(seats) == 1 {
			p.installLocked(nil, nil)
			break // until somebody comes
		}
		p.mu.Unlock()
		start := time.Now()
		slices.SortFunc(seats[1:], func(a, b seat) int { return strings.Compare(a.server.id, b.server.id) })
		t := tableOf(seats[1:], h.table, b.stop)
		pause := time.Duration(float64(time.Since(start)) * (1/deriveShare - 1))
		p.mu.Lock()
		if p.closed {
			break
		}
		p.installLocked(t, seats)
		p.mu.Unlock()
		select {
		case <-time.After(min(pause, maxPause)):
		case <-b.stop:
		}
		p.mu.Lock()
	}
	b.busy = false
}

// seatsLocked returns the seats of who takes keys, mostly by id already.
func (p *policy) seatsLocked(h *homes) []seat {
	seats := append(make([]seat, 0, len(p.members.list)+1), unknown)
	take := func(s *server) {
		if w := s.view.Load().home; w > 0 {
			seats = append(seats, seat{s, w})
		}
	}
	for _, s := range h.seats {
		take(s.server)
	}
	for _, s := range p.members.list {
		if s.seat == 0 {
			take(s)
		}
	}
	return seats
}

// installLocked makes t the table. Servers may have changed since it was asked
// for.
func (p *policy) installLocked(t *table, seats []seat) {
	b := p.homes
	for i, s := range b.now.Load().seats {
		if i > 0 { // unknown is everybody's
			s.server.seat = 0
		}
	}
	clear(b.misfits)
	for i, s := range seats {
		if i > 0 {
			s.server.seat = uint32(i)
			b.noteLocked(s.server, seats)
		}
	}
	for _, s := range p.members.list {
		if s.seat == 0 {
			b.noteLocked(s, seats)
		}
	}
	h := newHomes(p.members, t, seats, make([]readyPointer, len(seats)), b.addedLocked())
	for i := range seats {
		h.seatLocked(i)
	}
	b.now.Store(h)
}

// seatLocked sees to it that quick picks know s as a home.
func (b *homeBook) seatLocked(s *server) {
	if s.seat > 0 {
		b.now.Load().seatLocked(int(s.seat))
	}
}

func (h *homes) seatLocked(i int) {
	var c *readyConn
	if s := &h.seats[i]; s.server.view.Load().home == s.weight {
		c = s.server.conn.Load()
	}
	h.conns[i].Store(c)
}

// close waits until no table is being derived. The policy is closed by then.
func (b *homeBook) close() {
	close(b.stop)
	b.work.Wait()
}

// relief returns where a call by key goes instead of its home, because that is
// full, and home if it is not. A home that is not READY is waited for.
func (p *picker) relief(slot uint32, home *view) *view {
	l := home.target.load()
	if l == nil || !l.full(p.cfg.maxLoadFactor, home.home) {
		return home
	}
	return p.homes.now.Load().spill(slot, home, p.cfg.maxLoadFactor)
}

// chooseByKey serves a call that goes by its key, and that no session holds.
func (p *picker) chooseByKey(hash uint64) choice {
	slot := slotOf(hash)
	home := p.homes.at(slot)
	if home == nil {
		return p.homeless()
	}
	if v := p.relief(slot, home); v != home {
		return v.choose(callctx.Spilled)
	}
	return home.choose(callctx.Home)
}

// chooseHome serves a call that has lost its server. However full the home is: all
// who were pinned to one server are to meet again.
func (p *picker) chooseHome(hash uint64) choice {
	if home := p.homes.at(slotOf(hash)); home != nil {
		return home.choose(callctx.Rehomed)
	}
	return p.homeless()
}

// homeless is what becomes of a call that no server is home to.
func (p *picker) homeless() choice {
	switch {
	case p.revision.Load() != p.made:
		return queue() // servers are changing, and the next picker knows which
	case p.ring == nil && p.err != balancer.ErrNoSubConnAvailable:
		return choice{err: p.err}
	}
	return choice{err: fmt.Errorf("%s: no server is READY, and the reconnect window of each is over", Name)}
}
