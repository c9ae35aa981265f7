package stickybalancer

import (
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/pickfirst"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/session"
)

// policy is one channel's custom_round_robin.
type policy struct {
	cc     balancer.ClientConn
	parent *parent // of children
	opts   balancer.BuildOptions
	target session.Target // the channel's
	log    logger
	seed   uint64   // differs from channel to channel: which subset is ours
	turns  *counter // the rotation of calls without affinity
	meter  *meter

	nameless nameless

	// revision grows before a change of a view, and a picker follows each change. So
	// a pick can tell that what it sees is newer than its picker.
	revision atomic.Uint64

	// mu guards what follows, and all servers. It is the innermost lock of
	// ours: cc.UpdateState is called under it, children never are.
	mu      sync.Mutex
	cfg     *lbConfig
	closed  bool
	batch   bool                // an update is under way: it publishes at its end
	changed bool                // since the last picker
	last    []resolver.Endpoint // the last list as the resolver gave it
	single  bool                // each endpoint in last is one server, with an id and addresses of its own
	attrs   resolver.State      // the rest of its state
	listErr error               // why there is no endpoint, if there is none

	ids     idTable        // known servers, and those not long gone
	byIndex []*server      // the same; nil where one was forgotten
	conns   []readyPointer // by the same index
	free    []int32        // indexes of none
	members *members       // what pickers see of servers
	homes   *homeBook      // where keys live
	loads   *loads
	first   time.Time // of the first list; zero before
	settled bool      // an id never listed is waited for no longer
	outages []*outage // by the time they began
	keeping []*keep   // by the time they began
	timer   *time.Timer

	// Sums over servers, so that one change costs the same at any size.
	rings      [3]*ring // the first that is not empty serves
	open       int      // servers known and not draining
	ready      int      // servers READY
	counts     [5]int   // spread servers by connectivity state
	ownIdle    int      // spread servers that are idle, of the own zone
	shareLimit uint32   // about the mean weight: the most that one share may hold
	allDrain   bool     // every server drains: as if none did
	hasSubset  bool     // the servers' inSubset is not true of all
	shared     bool     // pickers have ids and byIndex, too: they are copied before they change
	update     uint32   // counts the lists, to tell who is not in the last
	failed     *server  // the one that was the last to fail
}

func newPolicy(cc balancer.ClientConn, opts balancer.BuildOptions) *policy {
	p := &policy{
		cc:         cc,
		opts:       opts,
		target:     unique.Make(opts.Target.String()),
		seed:       rand.Uint64(),
		turns:      &counter{},
		members:    newMembers(idTable{}, nil, nil),
		rings:      [3]*ring{newRing(), newRing(), newRing()},
		shareLimit: 1,
		listErr:    errors.New("no list of endpoints yet"),
	}
	p.parent = &parent{cc, p}
	p.homes, p.loads = newHomeBook(p), &loads{}
	p.turns.n.Store(rand.Uint32())
	p.log = newLogger(p)
	p.nameless.log = p.log
	p.timer = time.AfterFunc(time.Hour, p.expire)
	p.timer.Stop()
	p.meter = newMeter(cc.MetricsRecorder(), p.target.Value(), p.publishAgain)
	return p
}

// ResolverError is called when the resolver has no list. The last good one
// stays in use.
func (p *policy) ResolverError(err error) {
	p.mu.Lock()
	p.batch = true
	if !slices.ContainsFunc(p.members.list, (*server).known) {
		p.listErr = fmt.Errorf("name resolver error: %v", err)
		p.changed = true
	}
	if p.cfg == nil {
		p.cfg, _ = parseConfig([]byte("{}"))
	}
	p.beganLocked(time.Now())
	children := p.childrenLocked()
	p.mu.Unlock()
	for _, c := range children {
		c.resolverError(err)
	}
	p.endBatch()
}

// ExitIdle connects what is idle; under LAZY, one server if none is READY.
func (p *policy) ExitIdle() {
	p.mu.Lock()
	lazy, ready := p.cfg != nil && p.cfg.lazy, p.ready
	p.batch = true
	children := p.childrenLocked()
	p.mu.Unlock()
	switch {
	case !lazy:
		for _, c := range children {
			c.connect()
		}
	case ready == 0:
		p.connectOneIdle()
	}
	p.endBatch()
}

// UpdateSubConnState is never called: children listen to their SubConns.
func (p *policy) UpdateSubConnState(balancer.SubConn, balancer.SubConnState) {}

// Close ends all connections. Calls under way on them go on to their end.
func (p *policy) Close() {
	p.mu.Lock()
	again := p.closed
	p.closed = true
	p.timer.Stop()
	children := p.childrenLocked()
	p.mu.Unlock()
	for _, c := range children {
		c.close()
	}
	if !again {
		p.homes.close()
		p.meter.close()
	}
}

// serversLocked is over all servers of ids.
func (p *policy) serversLocked() iter.Seq[*server] {
	return func(yield func(*server) bool) {
		for _, s := range p.byIndex {
			if s != nil && !yield(s) {
				return
			}
		}
	}
}

// server returns the server of an id, nil if there is none.
func (p *policy) server(id string) *server { return p.ids.get(callctx.Hash(id), id) }

// unshareLocked makes ids and byIndex ours alone.
func (p *policy) unshareLocked() {
	if p.shared {
		p.ids, p.byIndex, p.shared = p.ids.clone(), slices.Clone(p.byIndex), false
	}
}

func (p *policy) childrenLocked() []*child {
	children := make([]*child, 0, p.ids.n)
	for s := range p.serversLocked() {
		if s.child != nil {
			children = append(children, s.child)
		}
	}
	return children
}

func (p *policy) endBatch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.batch = false
	p.publishLocked()
}

// UpdateClientConnState takes a list from the resolver. Only the servers in
// which it differs from the last one are touched.
func (p *policy) UpdateClientConnState(state balancer.ClientConnState) error {
	cfg, ok := state.BalancerConfig.(*lbConfig)
	if !ok && state.BalancerConfig != nil {
		return fmt.Errorf("%s: config must come from its own parser, got %T: %w", Name, state.BalancerConfig, balancer.ErrBadResolverState)
	}
	rs := pickfirst.EnableHealthListener(state.ResolverState)
	endpoints := rs.Endpoints
	rs.Endpoints, rs.Addresses = nil, nil

	p.mu.Lock()
	p.batch = true
	if cfg == nil {
		if cfg = p.cfg; cfg == nil {
			cfg, _ = parseConfig([]byte("{}"))
		}
	}
	newConfig := p.cfg == nil || p.cfg.values() != cfg.values()
	p.cfg = cfg
	now := time.Now()
	p.beganLocked(now)
	sameAttrs := sameAttributes(p.attrs.Attributes, rs.Attributes)
	p.attrs = rs
	var work []func()
	if news, any := p.newsLocked(endpoints, newConfig || !sameAttrs); any {
		p.last = endpoints
		work = p.applyLocked(news, now, newConfig, !sameAttrs)
	}
	p.homesLocked() // at once: to start children takes a while
	p.armLocked(now)
	p.mu.Unlock()

	for _, f := range work {
		f()
	}
	p.endBatch()
	if len(endpoints) == 0 {
		return balancer.ErrBadResolverState
	}
	return nil
}

// beganLocked notes when the resolver first said something: from then on an id that is
// not listed is waited for, for the window.
func (p *policy) beganLocked(now time.Time) {
	if p.first.IsZero() {
		p.first = now
		p.settled = p.cfg.reconnectWindow <= 0
		p.changed = true
		p.armLocked(now)
	}
}

// connectOneIdle connects one idle server of those for calls without affinity, of the
// own zone if there is one.
func (p *policy) connectOneIdle() {
	p.mu.Lock()
	c := p.oneIdleLocked()
	p.mu.Unlock()
	if c != nil {
		c.connect()
	}
}

// oneIdleLocked returns each that may be, nil if there is none, with the same probability:
// the list has the resolver's order, so that the next one from anywhere would mostly be
// the first of a zone, in every channel.
func (p *policy) oneIdleLocked() *child {
	is := func(s *server) bool {
		return s.spread && s.state() == connectivity.Idle && s.child != nil && (!s.foreign || p.ownIdle == 0)
	}
	list := p.members.list
	for range min(len(list), 32) { // where many are, one is found soon
		if s := list[rand.IntN(len(list))]; is(s) {
			return s.child
		}
	}
	var c *child
	found := 0
	for _, s := range list {
		if is(s) {
			if found++; rand.IntN(found) == 0 {
				c = s.child
			}
		}
	}
	return c
}
