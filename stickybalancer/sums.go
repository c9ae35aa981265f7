package stickybalancer

import (
	"fmt"
	"sync"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
)

// spreadAgainIfLocked refreshes all servers when the last one that does not
// drain went, or the first one came.
func (p *policy) spreadAgainIfLocked() {
	if all := p.open == 0; all != p.allDrain {
		p.allDrain, p.changed = all, true
		if p.hasSubset {
			p.chooseSubsetLocked()
		}
		for s := range p.serversLocked() {
			p.refreshLocked(s)
		}
	}
}

// refreshLocked brings the sums, the rings and the view of s up to date.
func (p *policy) refreshLocked(s *server) {
	state := s.state()
	drains := s.draining || s.unhealthy
	isReady := state == connectivity.Ready && s.live != nil

	before := p.modeLocked()
	if open := s.known() && !drains; open != s.open {
		s.open = open
		p.open += step(open)
	}
	if isReady != s.isReady {
		s.isReady = isReady
		p.ready += step(isReady)
	}
	spread := s.listed && (!s.draining || p.allDrain) && s.inSubset
	if s.spread {
		p.counts[s.counted]--
	}
	if s.spread = spread; spread {
		s.counted = uint8(state)
		p.counts[state]++
	}
	if idle := spread && state == connectivity.Idle && !s.foreign; idle != s.ownIdle {
		s.ownIdle = idle
		p.ownIdle += step(idle)
	}

	if spread && state == connectivity.Idle && p.cfg.lazy && p.eagerLocked(s) {
		go s.child.connect() // has come into the subset
	}

	v := view{phase: away, known: s.known(), kept: s.kept(), draining: drains, weight: s.weight, target: target{place: s.place}}
	var idler *child
	switch {
	case s.live != nil:
		v.phase, v.target = ready, s.currentTarget(p.loadLocked(s))
	case s.lost:
	case s.child != nil && state == connectivity.Idle && s.outage == nil && !p.eagerLocked(s):
		v.phase, idler = idle, s.child
	case s.known() || s.outage != nil:
		v.phase = waits
	}
	if v.phase != ready && (s.failure != nil || idler != nil) {
		v.unready = &unready{err: s.failure, child: idler}
	}
	if v.known && v.phase != away && (!v.draining || p.allDrain) {
		v.home = v.weight
	}
	old := s.view.Load()
	if !old.target.is(v.target) || old.phase != v.phase {
		p.connLocked(s, v.readyConn())
	}
	if old.home != v.home {
		p.homes.moved = append(p.homes.moved, s)
	}
	p.loads.weighLocked(old, &v)
	if old.phase != v.phase || old.known != v.known || old.kept != v.kept || old.draining != v.draining ||
		old.weight != v.weight || old.home != v.home || !old.target.is(v.target) || old.idleChild() != idler {
		p.changed = true
		p.revision.Add(1) // before pickers can see it
		s.view.Store(new(v))
		p.homes.seatLocked(s)
		p.meter.changed(old, &v)
	} else if !sameError(old.failure(), v.failure()) {
		s.view.Store(new(v)) // only words in an error: no call waits for them
	}

	ring := noRing
	switch {
	case !isReady:
	case s.kept():
		ring = keptRing
	case spread && !s.foreign:
		ring = ownRing
	case spread:
		ring = foreignRing
	}
	if had := s.shares != nil; had != (ring != noRing) || had && (ring != s.ring || !s.shares.target.is(v.target) || old.weight != v.weight) {
		p.unringLocked(s)
		if ring != noRing {
			s.ring = ring
			for w := range splitWeight(s.weight, p.shareLimit) {
				s.shares = &share{target: &s.view.Load().target, conn: s.conn.Load(), next: s.shares, weight: w}
				p.rings[ring].add(s.shares)
			}
		}
		p.changed = true
	}
	p.changed = p.changed || before != p.modeLocked()
}

// connLocked makes c what quick picks see of s.
func (p *policy) connLocked(s *server, c *readyConn) {
	s.conn.Store(c)
	p.conns[s.index].Store(c)
}

func (p *policy) unringLocked(s *server) {
	for sh := s.shares; sh != nil; sh = sh.next {
		p.rings[s.ring].remove(sh)
	}
	s.shares = nil
}

func step(up bool) int {
	if up {
		return 1
	}
	return -1
}

// mode is what calls without affinity meet, and what the channel is in.
type mode struct {
	ring    *ring
	state   connectivity.State // if there is no ring
	channel connectivity.State
	wake    bool // there are idle servers, and none is connecting
}

func (p *policy) modeLocked() mode {
	var m mode
	for _, r := range p.rings {
		if !r.empty() {
			m.ring = r
			break
		}
	}
	switch {
	case p.counts[connectivity.Connecting] > 0:
		m.state = connectivity.Connecting
	case p.counts[connectivity.Idle] > 0:
		m.state = connectivity.Idle
	default:
		m.state = connectivity.TransientFailure
	}
	m.channel = m.state
	if p.ready > 0 {
		m.channel = connectivity.Ready
	}
	idle := p.counts[connectivity.Idle]
	if m.ring != nil && m.ring == p.rings[ownRing] {
		idle = p.ownIdle // other zones are not needed
	}
	m.wake = idle > 0 && p.counts[connectivity.Connecting] == 0
	return m
}

// publishLocked gives gRPC a new picker, if a call could tell it from the last.
func (p *policy) publishLocked() {
	if p.closed || !p.changed {
		return
	}
	p.changed = false
	p.homesLocked()
	m := p.modeLocked()
	pk := &picker{
		cfg:        p.cfg,
		target:     p.target,
		revision:   &p.revision,
		made:       p.revision.Load(),
		members:    p.members,
		homes:      p.homes,
		ring:       m.ring,
		turns:      p.turns,
		settled:    p.settled,
		nameless:   &p.nameless,
		headers:    p.cfg != nil && (p.cfg.idHeader != "" || p.cfg.keyHeader != ""),
		trustMarks: p.cfg != nil && p.cfg.defaultHeaders(),
	}
	if m.ring == nil {
		pk.err = balancer.ErrNoSubConnAvailable
		if m.state == connectivity.TransientFailure {
			pk.err = p.noneLocked()
		}
	}
	if m.wake && p.cfg != nil && p.cfg.lazy {
		pk.wake = sync.OnceFunc(func() { go p.connectOneIdle() })
	}
	if pk.wake == nil {
		pk.plain = pk.ring
	}
	if !pk.headers || pk.trustMarks {
		pk.marked = pk.plain
	}
	if !pk.headers {
		pk.bare = pk.plain
	}
	p.cc.UpdateState(balancer.State{ConnectivityState: m.channel, Picker: p.countedLocked(pk)})
}

// countedLocked returns pk, or what counts its picks if somebody records them.
func (p *policy) countedLocked(pk *picker) balancer.Picker {
	if !p.meter.counting.Load() {
		return pk
	}
	pk.meter = p.meter
	return counted{pk}
}

// publishAgain publishes what is, if anything was.
func (p *policy) publishAgain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changed = p.changed || !p.first.IsZero()
	if !p.batch {
		p.publishLocked()
	}
}

// noneLocked says why no server can take a call.
func (p *policy) noneLocked() error {
	switch {
	case p.counts[connectivity.TransientFailure] > 0:
		return p.failureLocked()
	case p.listErr != nil:
		return fmt.Errorf("%s: no servers: %v", Name, p.listErr)
	default:
		return fmt.Errorf("%s: no server is READY", Name)
	}
}

// failureLocked is the last failure of a server that calls without affinity could
// have used.
func (p *policy) failureLocked() error {
	if s := p.failed; s != nil && s.spread && s.failure != nil {
		return s.failure
	}
	for _, s := range p.members.list {
		if s.spread && s.failure != nil {
			return s.failure
		}
	}
	return fmt.Errorf("%s: no server is READY", Name)
}
