package stickybalancer

import (
	"slices"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
)

// childReportedLocked takes in what the child of s has reported.
func (p *policy) childReportedLocked(s *server) {
	wasLive := s.live != nil
	s.noteReport()
	now := time.Now()
	state := s.state()
	if state == connectivity.TransientFailure {
		_, s.failure = s.child.picker.Pick(balancer.PickInfo{})
		p.failed = s
		p.changed = p.changed || p.ready == 0
	}
	switch {
	case s.live != nil:
		s.outage, s.lost = nil, false
		if !s.unhealthy {
			s.failure = nil
		}
	case wasLive && s.kept():
		c := p.goneLocked(s, now)
		go c.close() // it holds its lock: it is the one that reports
	case state == connectivity.Idle && p.cfg.lazy && s.outage == nil && !s.lost && !p.eagerLocked(s):
		s.tried = false // no outage: it connects when it is picked
	default:
		p.beginOutageLocked(s, now)
		if state == connectivity.Idle {
			go s.child.connect()
		}
	}
	p.refreshLocked(s)
	p.spreadAgainIfLocked()
	p.armLocked(now)
	if !p.batch {
		p.publishLocked()
	}
}

// eagerLocked reports whether s connects without being picked.
func (p *policy) eagerLocked(s *server) bool {
	return !p.cfg.lazy || (p.hasSubset && s.inSubset)
}

// beginOutageLocked begins the outage of s unless it has begun.
func (p *policy) beginOutageLocked(s *server, now time.Time) {
	switch {
	case s.lost:
	case p.cfg.reconnectWindow <= 0:
		// A server never tried gets its one attempt, which gRPC bounds.
		s.lost = s.tried
	case s.outage == nil:
		s.outage = &outage{server: s, since: now}
		p.outages = append(p.outages, s.outage)
		if len(p.outages) > 2*p.ids.n+16 {
			p.outages = slices.DeleteFunc(p.outages, func(o *outage) bool { return o.server.outage != o })
		}
	}
}

// armLocked sets the timer to the next thing that time alone changes.
func (p *policy) armLocked(now time.Time) {
	if p.closed {
		return
	}
	var next time.Time
	sooner := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for len(p.outages) > 0 && p.outages[0].server.outage != p.outages[0] {
		p.outages = p.outages[1:]
	}
	if len(p.outages) > 0 {
		sooner(p.outages[0].since.Add(p.cfg.reconnectWindow))
	}
	for len(p.keeping) > 0 && p.keeping[0].server.keep != p.keeping[0] {
		p.keeping = p.keeping[1:]
	}
	if len(p.keeping) > 0 {
		sooner(p.keeping[0].since.Add(p.cfg.absentGrace))
	}
	if !p.settled && !p.first.IsZero() {
		sooner(p.first.Add(p.cfg.reconnectWindow))
	}
	if next.IsZero() {
		p.timer.Stop()
		return
	}
	p.timer.Reset(max(next.Sub(now), 0))
}

// expire ends windows and graces that have run out. Every queued call is woken
// by the picker that this publishes.
func (p *policy) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	now := time.Now()
	over := func(t time.Time) bool { return !now.Before(t) }
	if !p.settled && over(p.first.Add(p.cfg.reconnectWindow)) {
		p.settled, p.changed = true, true
	}
	for len(p.outages) > 0 {
		o := p.outages[0]
		if s := o.server; s.outage == o {
			if !over(o.since.Add(p.cfg.reconnectWindow)) {
				break
			}
			p.log.infof("server %q has been away for the window of %v", s.id, p.cfg.reconnectWindow)
			s.outage, s.lost = nil, true
			p.refreshLocked(s)
		}
		p.outages = p.outages[1:]
	}
	for len(p.keeping) > 0 {
		k := p.keeping[0]
		if s := k.server; s.keep == k {
			if !over(k.since.Add(p.cfg.absentGrace)) {
				break
			}
			p.log.infof("server %q has been absent for the grace of %v", s.id, p.cfg.absentGrace)
			c := p.goneLocked(s, now)
			go c.close()
			p.refreshLocked(s)
		}
		p.keeping = p.keeping[1:]
	}
	p.spreadAgainIfLocked()
	p.armLocked(now)
	if !p.batch {
		p.publishLocked()
	}
}
