package stickybalancer

import (
	"sync"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/pickfirst"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"
)

// A child is one pick_first policy, which owns the connection to one server:
// it brings dual stack, client-side health checking and outlier detection. It
// is also the balancer.ClientConn that pick_first is given.
//
// pick_first reports its state while it holds its own mutex, so the order of
// locks is child.mu → pick_first's → policy.mu, and no method of a child but
// the two it has for pick_first may be called under policy.mu.
type child struct {
	*parent // its ClientConn, but for NewSubConn and UpdateState

	server *server

	mu      sync.Mutex        // one call into pick_first at a time
	lb      balancer.Balancer // nil until there is a first state for it
	waiting *resolver.State   // a lazy child's state, until connect
	wanted  bool              // connect came before any state
	closed  bool

	// Guarded by policy.mu.
	reported uint8           // pick_first's last connectivity state
	picker   balancer.Picker // its last; nil before its first report
	conn     *subConn        // connected, whatever its health; nil if none
}

// parent is what all children have in common.
type parent struct {
	balancer.ClientConn
	policy *policy
}

// subConn is a connection that pick_first asked for.
type subConn struct {
	balancer.SubConn
	addr     string
	child    *child
	listener func(balancer.SubConnState) // pick_first's
}

// update hands state to pick_first. pick_first connects as soon as it has one,
// so a lazy child that was not asked to connect yet keeps it back.
func (c *child) update(state resolver.State, lazy bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lb == nil && lazy && !c.wanted {
		c.waiting = new(state) // a copy: the parameter need not be on the heap
		return
	}
	c.startLocked(state)
}

// connect leaves the idle state, if pick_first is in it.
func (c *child) connect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.lb != nil && !c.closed:
		c.lb.ExitIdle()
	case c.waiting != nil:
		c.startLocked(*c.waiting)
	default:
		c.wanted = true
	}
}

func (c *child) startLocked(state resolver.State) {
	if c.closed {
		return
	}
	if c.lb == nil {
		c.lb = balancer.Get(pickfirst.Name).Build(c, c.policy.opts)
		c.waiting = nil
	}
	// The only error that pick_first has to report is an empty list.
	_ = c.lb.UpdateClientConnState(balancer.ClientConnState{ResolverState: state})
}

func (c *child) resolverError(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lb != nil && !c.closed {
		c.lb.ResolverError(err)
	}
}

func (c *child) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lb != nil && !c.closed {
		c.lb.Close()
	}
	c.closed = true
	c.waiting = nil
}

// NewSubConn notes when the connection itself comes and goes. pick_first tells
// that only mixed with the health of the server.
func (c *child) NewSubConn(addrs []resolver.Address, opts balancer.NewSubConnOptions) (balancer.SubConn, error) {
	conn := &subConn{addr: addrs[0].Addr, child: c, listener: opts.StateListener}
	opts.StateListener = conn.changed
	//lint:ignore SA1019 pick_first passes one address, which is what will remain
	sc, err := c.ClientConn.NewSubConn(addrs, opts)
	conn.SubConn = sc
	return sc, err
}

func (sc *subConn) changed(s balancer.SubConnState) {
	c := sc.child
	p := c.policy
	p.mu.Lock()
	switch {
	case s.ConnectivityState != connectivity.Ready:
		if c.conn == sc {
			c.conn = nil
		}
	case c.conn == nil: // or it lost the race: pick_first has shut it down
		c.conn = sc
	}
	p.mu.Unlock()
	sc.listener(s) // makes pick_first report
	if s.ConnectivityState == connectivity.Shutdown {
		c.gaveUp(sc)
	}
}

// gaveUp is called when pick_first has shut down a connection, of which it reports
// nothing. If that was the one in use, for its address has changed, an outage begins.
func (c *child) gaveUp(sc *subConn) {
	p := c.policy
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed && c.server.child == c && c.server.live == sc {
		p.childReportedLocked(c.server)
	}
}

// UpdateState takes pick_first's report.
func (c *child) UpdateState(report balancer.State) {
	p := c.policy
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || c.server.child != c {
		return // of a child that is closed or about to be
	}
	c.reported, c.picker = uint8(report.ConnectivityState), report.Picker
	p.childReportedLocked(c.server)
}

// state returns what the child is in, before its first report too.
func (c *child) state() connectivity.State {
	if c.picker == nil {
		return connectivity.Idle
	}
	return connectivity.State(c.reported)
}
