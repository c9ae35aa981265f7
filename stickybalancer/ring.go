package stickybalancer

import (
	"iter"
	"math/rand/v2"
	"sync/atomic"

	"google.golang.org/grpc/balancer"

	"github.com/homing-grpc/homing/internal/session"
)

// A ring holds the READY endpoints that calls without affinity are spread over.
// It is shared by all pickers of a policy, so that one endpoint more or less
// costs the same at any size. Writers hold the policy's mutex and publish a
// picker afterwards; readers hold nothing.
//
// Endpoints have shares of the ring. Where weights differ, an endpoint heavier
// than the mean holds several shares, none of them far above it, and a share
// below the greatest is passed over in part of the rounds (the stride schedule
// of gRFC A58). So the split is exact, no pick passes over more than about three
// shares on average, and calls in a row go to different servers.
type ring struct {
	array atomic.Pointer[ringArray]
	// weights counts the shares by weight; greatest is the greatest of them.
	weights  map[uint32]int
	greatest uint32
	asides   int // shares without a readyConn
}

// These are the rings of a policy, in their order.
const (
	ownRing     int8 = iota // servers of the own zone; of any, if the config names none
	foreignRing             // of other zones
	keptRing                // absent ones
	noRing      int8 = -1
)

type ringArray struct {
	n      atomic.Uint32  // shares in use
	aside  atomic.Bool    // not all shares are the same, or one has no readyConn
	conns  []readyPointer // of shares
	top    atomic.Uint32  // the greatest weight, 0 if all are the same
	shares []atomic.Pointer[share]
}

func newRingArray(size uint32) *ringArray {
	return &ringArray{conns: make([]readyPointer, size), shares: make([]atomic.Pointer[share], size)}
}

func (a *ringArray) put(i uint32, s *share) {
	a.shares[i].Store(s)
	a.conns[i].Store(s.conn)
}

type share struct {
	target *target
	conn   *readyConn // nil if there is more to a pick than to name it
	next   *share     // of the same endpoint
	weight uint32
	pos    uint32 // in the ring; guarded by the policy's mutex
}

// target is where a pick ends: a READY connection.
type target struct {
	conn  *subConn       // nil if it is not READY
	place *session.Place // which start of which server it is
	aside *aside         // nil if a pick does no more than to name conn
}

// aside is what else a pick does.
type aside struct {
	picker balancer.Picker // the child's, if it does more than to name the connection
	load   *load           // counts the calls; nil if nobody needs to know
}

// is reports whether t and o end at the same place. Pickers need not be
// comparable, so one that must be asked counts as new each time.
func (t target) is(o target) bool {
	return t.conn == o.conn && t.place == o.place && t.load() == o.load() &&
		(t.aside == nil || t.aside.picker == nil) && (o.aside == nil || o.aside.picker == nil)
}

func (t *target) load() *load {
	if t.aside == nil {
		return nil
	}
	return t.aside.load
}

func (t *target) pick(info balancer.PickInfo) (balancer.PickResult, error) {
	res := balancer.PickResult{SubConn: t.conn.SubConn}
	if t.aside == nil {
		return res, nil
	}
	if t.aside.picker != nil {
		var err error
		if res, err = t.aside.picker.Pick(info); err != nil {
			return res, err
		}
	}
	if t.aside.load != nil {
		res = t.aside.load.count(res)
	}
	return res, nil
}

func newRing() *ring {
	r := &ring{weights: make(map[uint32]int)}
	r.array.Store(newRingArray(4))
	return r
}

func (r *ring) empty() bool { return r.array.Load().n.Load() == 0 }

// add puts s at a random place, so that the shares of one endpoint lie apart
// and no two channels visit the servers in the same order.
func (r *ring) add(s *share) {
	a := r.array.Load()
	n := a.n.Load()
	if int(n) == len(a.shares) {
		b := newRingArray(2 * n)
		for i := range a.shares {
			b.put(uint32(i), a.shares[i].Load())
		}
		b.n.Store(n)
		b.top.Store(a.top.Load())
		b.aside.Store(a.aside.Load())
		a = b
	}
	s.pos = rand.Uint32N(n + 1)
	if s.pos != n {
		last := a.shares[s.pos].Load()
		last.pos = n
		a.put(n, last)
	}
	a.put(s.pos, s)
	if s.conn == nil {
		r.asides++
		a.aside.Store(true) // before the next picks see it
	}
	a.n.Store(n + 1)
	r.weights[s.weight]++
	r.greatest = max(r.greatest, s.weight)
	r.setTop(a)
	r.array.Store(a)
}

func (r *ring) remove(s *share) {
	a := r.array.Load()
	n := a.n.Load() - 1
	if s.pos != n {
		last := a.shares[n].Load()
		last.pos = s.pos
		a.put(s.pos, last)
	}
	a.n.Store(n)
	a.shares[n].Store(nil) // or a lost connection would stay reachable
	a.conns[n].Store(nil)
	if s.conn == nil {
		r.asides--
	}
	if r.weights[s.weight]--; r.weights[s.weight] == 0 {
		delete(r.weights, s.weight)
		if s.weight == r.greatest {
			r.greatest = 0
			for w := range r.weights {
				r.greatest = max(r.greatest, w)
			}
		}
	}
	r.setTop(a)
}

func (r *ring) setTop(a *ringArray) {
	top := uint32(0)
	if len(r.weights) > 1 {
		top = r.greatest
	}
	if a.top.Load() != top {
		a.top.Store(top)
	}
	if aside := top != 0 || r.asides > 0; a.aside.Load() != aside {
		a.aside.Store(aside)
	}
}

// counter is the rotation of one policy. It has a cache line of its own: it is
// the only thing that picks write, and what lies beside it is read by all.
type counter struct {
	_ [64]byte
	n atomic.Uint32
	_ [60]byte
}

// next returns the next share, nil if there is none. A change under way can
// make it nil too; a picker is about to be published then.
func (r *ring) next(c *counter) *share {
	a := r.array.Load()
	for {
		n := a.n.Load()
		if n == 0 {
			return nil
		}
		seq := c.n.Add(1)
		i := seq % n
		s := a.shares[i].Load()
		top := a.top.Load()
		if s == nil || top == 0 {
			return s
		}
		// In top rounds, a share of weight w is taken w times, spread evenly.
		round, w := uint64(seq/n+i)%uint64(top), uint64(s.weight)
		if round*w%uint64(top)+w >= uint64(top) {
			return s
		}
	}
}

// splitWeight cuts weight into equal shares of at most limit.
func splitWeight(weight, limit uint32) iter.Seq[uint32] {
	n := (uint64(weight) + uint64(limit) - 1) / uint64(limit)
	return func(yield func(uint32) bool) {
		for i := range n {
			// whole numbers that differ by one at most and add up to weight
			if !yield(uint32(uint64(weight)*(i+1)/n - uint64(weight)*i/n)) {
				return
			}
		}
	}
}
