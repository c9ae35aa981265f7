package stickybalancer

import (
	"math"
	"sync/atomic"

	"google.golang.org/grpc/balancer"
)

// loads counts the calls of one channel that are in flight, for bounded loads
// (Mirrokni, Thorup and Zadimoghaddam, 2018): a home that has its share passes
// keys on. It counts only while maxLoadFactor is on, for that costs each call
// two shared writes.
type loads struct {
	total  atomic.Int64
	weight atomic.Uint64 // of the READY servers that take keys
}

// load is one server's part of loads.
type load struct {
	all  *loads
	n    atomic.Int64
	done func(balancer.DoneInfo) // made once, so that no pick allocates
}

func newLoad(all *loads) *load {
	l := &load{all: all}
	l.done = func(balancer.DoneInfo) {
		l.n.Add(-1)
		l.all.total.Add(-1)
	}
	return l
}

// loadLocked returns what counts the calls to s, nil if none are counted. Calls
// that were counted before factor was turned off and on again still are.
func (p *policy) loadLocked(s *server) *load {
	if p.cfg == nil || p.cfg.maxLoadFactor == 0 {
		return nil
	}
	if s.load == nil {
		s.load = newLoad(p.loads)
	}
	return s.load
}

// weighLocked notes that a server's view changes.
func (l *loads) weighLocked(old, now *view) {
	weight := func(v *view) uint64 {
		if v.phase == ready {
			return uint64(v.home)
		}
		return 0
	}
	l.weight.Add(weight(now) - weight(old))
}

// count counts a pick that res is the result of.
func (l *load) count(res balancer.PickResult) balancer.PickResult {
	l.n.Add(1)
	l.all.total.Add(1)
	if done := res.Done; done != nil {
		res.Done = func(info balancer.DoneInfo) {
			done(info)
			l.done(info)
		}
	} else {
		res.Done = l.done
	}
	return res
}

// full reports whether one call more would be above factor times the part of all
// calls that is due to weight, rounded up. Some READY server never is, and one that
// takes no keys, which has the weight 0, always.
func (l *load) full(factor float64, weight uint32) bool {
	due := factor * float64(l.all.total.Load()+1) * float64(weight) / float64(l.all.weight.Load())
	return float64(l.n.Load()) >= math.Ceil(due)
}

// spill returns where a key goes whose home is READY and full: to the next in
// the order of its slot that is READY and not full.
func (h *homes) spill(slot uint32, home *view, factor float64) *view {
	var next *view
	var best rank
	for _, s := range h.members.list {
		v := s.view.Load()
		if v == home || v.target.load() == nil || v.target.load().full(factor, v.home) {
			continue
		}
		if r := (rank{draw(slot, s.hash), v.home, s.id}); next == nil || r.before(best) {
			next, best = v, r
		}
	}
	if next == nil {
		return home // they have filled up since
	}
	return next
}
