package affinity

import (
	"context"
	"unique"

	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/session"
)

// A Session remembers which server holds its state, one server for each target, so
// that calls made with its context come back there: through reconnects, new channels
// and, by [Session.MarshalText], restarts of the client. It learns from the balancer
// of this module, which sent the first call somewhere; it needs no header for that.
// Where that balancer cannot know, behind a proxy or without metadata of servers, it
// learns from answers, if client and server have the interceptors.
//
// The first call goes to the home of the session's key, or round robin if it has none.
// First calls that are made at once go to one server. From its first answer on, the
// session stays: servers that join take nothing away, one that drains keeps it. It
// moves when its server is gone (away for longer than reconnectWindow, or out of the
// resolver's list), has restarted under the same id, says by [Moved] that the state is
// elsewhere, or refuses the session ([WithFence]). Then [Session.OnMove] tells, and the
// session does not move back.
//
// A session belongs to one client process. Two that share a key meet at its home, as
// long as they have bound to it under the same list of servers; see [Moved] for what
// makes them agree otherwise.
//
// A Session is safe for concurrent use, holds nothing of a channel alive, and takes
// about a hundred bytes and its key, so there may be a million of them.
type Session struct{ s session.Session }

// NewSession returns a session that lives nowhere yet. key is what its calls carry as
// if by [WithKey], bound like any key; it may be empty.
func NewSession(key string) *Session {
	s := new(Session)
	s.s.SetKey(key)
	return s
}

// Context returns a context for calls of the session. An id that ctx carries, by
// [With] or [Require], wins, and teaches the session nothing. A key that ctx carries
// is replaced by the session's.
func (s *Session) Context(ctx context.Context) context.Context {
	var v callctx.Value
	if old := callctx.From(ctx); old != nil {
		v = *old
	}
	v.Session, v.Key, v.NoHeaders = &s.s, s.s.Key(), false
	return callctx.With(ctx, v)
}

// ID returns the id of the server that the session lives on for a target, "" if it
// lives nowhere yet. target is a channel's canonical one
// ([google.golang.org/grpc.ClientConn.CanonicalTarget]), like "etcd:///game".
func (s *Session) ID(target string) string {
	if p := s.s.Find(unique.Make(target)).Lives(); p != nil {
		return p.Called()
	}
	return ""
}

// OnMove makes f be called once for each move that an answer of the new server has
// confirmed: what the old server knew of the session is to be loaded again. Calls of f
// follow one another in the order of the moves, on a goroutine that lives only as long
// as there are any; f may make calls with the session. A later OnMove replaces f, nil
// ends it. Moves before it are not told.
func (s *Session) OnMove(f func(Move)) { s.s.OnMove(f) }

// Forget makes the session live nowhere, for a target: its next call goes where a
// first call would. Nobody is told, and streams that are open go on.
func (s *Session) Forget(target string) {
	if b := s.s.Find(unique.Make(target)); b != nil {
		b.Forget(nil)
	}
}
