package callctx

import (
	"sync/atomic"

	"github.com/homing-grpc/homing/internal/session"
)

// Reason says why a call went where it went.
type Reason uint8

// The reasons.
const (
	RoundRobin Reason = iota // it has no affinity, or is a session's first without a key
	ID                       // it names its server
	Session                  // its session lives there
	Home                     // it is the home of its key
	Rehomed                  // its server is gone, and this is the home that it has now
	Spilled                  // its home is full
	Moved                    // a server said that the state is there

	Reasons = iota // how many there are
)

var reasons = [...]string{"round_robin", "id", "session", "home", "rehomed", "spilled", "moved"}

func (r Reason) String() string { return reasons[r] }

// Route is where a call went: one hop for each attempt, which follow one another.
// The picker writes it.
type Route struct {
	Also *Route // is told, too; nil if there is none

	last   atomic.Pointer[Hop]
	hops   atomic.Int32
	queued atomic.Bool
}

// Hop is one attempt of a call.
type Hop struct {
	Place  *session.Place
	Addr   string
	Reason Reason
	Waited bool // for a server that was not READY
}

// Queued notes that the call waits.
func (r *Route) Queued() {
	for ; r != nil; r = r.Also {
		r.queued.Store(true)
	}
}

// Went notes an attempt.
func (r *Route) Went(h Hop) {
	for ; r != nil; r = r.Also {
		h.Waited = r.queued.Swap(false)
		r.hops.Add(1)
		last := h
		r.last.Store(&last)
	}
}

// Last returns the last attempt, nil if there was none yet.
func (r *Route) Last() *Hop { return r.last.Load() }

// Hops returns how many attempts there were.
func (r *Route) Hops() int { return int(r.hops.Load()) }
