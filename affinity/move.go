package affinity

import "github.com/homing-grpc/homing/internal/session"

// Move tells that a session left the state behind that a server held for it.
type Move = session.Move

// Reason says why a session moved.
type Reason = session.Reason

// The reasons of a [Move].
const (
	ReasonGone      Reason = "gone"        // the server left the resolver's list
	ReasonDrained   Reason = "drained"     // it left the list after it had been draining
	ReasonFailed    Reason = "failed"      // it is listed, and was not reached within the reconnect window
	ReasonRestarted Reason = "restarted"   // it is there under its id, and has lost its memory
	ReasonMoved            = session.Moved // it said by [Moved] that the state is elsewhere, or refused the session ([WithFence])
)
