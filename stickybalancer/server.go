package stickybalancer

import (
	"sync/atomic"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/session"
)

// A server is what the policy knows of one server id. It outlives the server's
// place in the resolver's list by absentGrace while its connection is READY
// (it is *kept*), and by the reconnect window in any case, so that calls can
// wait for its return.
//
// There are many: no field is here that another one tells. All are guarded by
// policy.mu, but for view and conn, which pickers read.
type server struct {
	id    string
	hash  uint64
	conn  readyPointer   // what most picks need of view; it is beside what they compare
	place *session.Place // renewed with each start of the server
	view  atomic.Pointer[view]

	endpoint resolver.Endpoint
	load     *load    // of calls by this channel, while they are counted
	child    *child   // nil when it is not known (any more)
	live     *subConn // READY, and its health, if watched, was told; nil if none
	keep     *keep    // while it is known without being listed
	outage   *outage  // while there is one
	failure  error    // the last one to connect
	shares   *share   // of ring; nil unless it takes calls without affinity

	index  int32  // among the policy's servers
	weight uint32 // 1 or more
	update uint32 // the number of the last list that had it
	seat   uint32 // its index in the table of homes, plus 1; 0 if it has none

	listed    bool // in the resolver's last list
	draining  bool // it says so
	foreign   bool // of another zone than the channel's
	unhealthy bool // live, and its health check says no
	tried     bool // a connection attempt to this address has ended
	lost      bool // the outage has lasted for the reconnect window

	// What of it is in the policy's sums.
	inSubset bool  // of the servers for calls without affinity
	open     bool  // known and not draining
	spread   bool  // calls without affinity may use it, if READY
	counted  uint8 // the connectivity state as which it counts, if it is spread
	isReady  bool
	ownIdle  bool // it is spread, idle, and of the own zone
	ring     int8 // of the policy's rings the one that has its shares
}

// An outage is the time in which a server is away and waited for.
type outage struct {
	server *server
	since  time.Time
}

// A keep is the time in which a server that left the list keeps what it has.
type keep struct {
	server *server
	since  time.Time
}

type phase uint8

const (
	away  phase = iota // not READY, and waited for no longer
	waits              // not READY, inside the window: calls queue for it
	idle               // waits for its first pick to connect (LAZY)
	ready              // connected
)

// view is what pickers see of a server. It is immutable but for unready.connecting.
type view struct {
	phase    phase
	known    bool // in the list, or kept
	kept     bool
	draining bool // takes nothing new: it says so, or its health check does
	weight   uint32
	home     uint32 // the weight as a home of keys, 0 if it takes none
	target   target // its conn only if ready
	unready  *unready
}

// unready is what else there is to know of a server that is not ready; nil if nothing.
type unready struct {
	err   error  // the last failure to connect
	child *child // if idle
	// connecting is set by the first pick that asked an idle child to connect.
	connecting atomic.Bool
}

// unborn is the view of a server that has none yet.
var unborn = &view{}

func newServer(id string, index int32) *server {
	s := &server{id: id, hash: callctx.Hash(id), index: index, weight: 1, inSubset: true}
	s.view.Store(unborn)
	return s
}

// connect makes an idle server connect, without waiting for it. A picker may
// call it: the child may be asked under no lock, so it is asked elsewhere.
func (v *view) connect() {
	if u := v.unready; u != nil && u.child != nil && u.connecting.CompareAndSwap(false, true) {
		go u.child.connect()
	}
}

func (v *view) failure() error {
	if v.unready == nil {
		return nil
	}
	return v.unready.err
}

func (v *view) idleChild() *child {
	if v.unready == nil {
		return nil
	}
	return v.unready.child
}

func (s *server) known() bool { return s.listed || s.keep != nil }

func (s *server) kept() bool { return s.keep != nil }

// describe takes in what the list says of the server.
func (s *server) describe(l listed, cfg *lbConfig) {
	s.weight, s.draining, s.foreign = max(l.meta.Weight, 1), l.meta.Draining, cfg.foreign(l.meta.Zone)
	if s.place == nil || s.place.Incarnation != l.meta.Incarnation {
		s.place = session.NewPlace(s.id, l.meta.Incarnation, s.index)
		s.place.SetBare(l.address() == s.id)
	}
}

// startedAgain reports whether the list says that the server was started while gRPC waits
// to try it again: it listens before it registers.
func (s *server) startedAgain(old, now resolver.Endpoint) bool {
	return s.live == nil && s.state() == connectivity.TransientFailure &&
		endpointsmeta.FromEndpoint(old).Incarnation < endpointsmeta.FromEndpoint(now).Incarnation
}

// state is the connectivity state by which the server counts.
func (s *server) state() connectivity.State {
	if s.child == nil {
		return connectivity.Shutdown
	}
	return s.child.state()
}

// noteReport draws from pick_first's report whether calls that belong to the
// server can reach it. Health that is unknown again, because its watch broke,
// changes nothing: the connection is the one that was there before.
func (s *server) noteReport() {
	conn := s.child.conn
	switch s.state() {
	case connectivity.Ready:
		s.live, s.unhealthy = conn, false
	case connectivity.TransientFailure:
		s.live, s.unhealthy = conn, conn != nil
	default:
		if conn == nil || s.live != conn {
			s.live, s.unhealthy = nil, false
		}
	}
	if s.live != nil || s.state() == connectivity.TransientFailure {
		s.tried = true
	}
}

// currentTarget returns where calls to s go. A READY picker of pick_first is constant
// and names the connection, unless a wrapper between us and gRPC adds to it.
func (s *server) currentTarget(l *load) target {
	t := target{conn: s.live, place: s.place}
	var asked balancer.Picker
	if s.state() == connectivity.Ready { // else only calls that belong to it, for it is not healthy
		r, err := s.child.picker.Pick(balancer.PickInfo{})
		if err != nil || r.Done != nil || r.Metadata != nil || r.SubConn != s.live.SubConn {
			asked = s.child.picker
		}
	}
	if asked != nil || l != nil {
		t.aside = &aside{asked, l}
	}
	return t
}
