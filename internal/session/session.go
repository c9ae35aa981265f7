// Package session is what a session remembers: where it lives, one server for each
// target. Package affinity gives it to callers, package stickybalancer teaches it.
//
// A session learns of a server when one of its calls is sent there. That is
// tentative, so that first calls made at once land together, until an answer confirms
// it. Then the server is its home until it is gone. Which changes there are:
//
//	nowhere ──pick──> tentative ──answer──> confirmed
//	   ^                 │                      │
//	   └── nothing sent ─┘          server gone, restarted, or "moved"
//	                                            │
//	                     confirmed <──answer── tentative, and where it was before
//
// Each change compares the state that it was made for with the state that is, so a
// late answer undoes nothing. Reading takes no lock.
package session

import (
	"sync"
	"sync/atomic"
	"unique"

	"google.golang.org/grpc/balancer"

	"github.com/homing-grpc/homing/internal/sealed"
)

// Target is a channel's canonical target.
type Target = unique.Handle[string]

// Place is one start of one server. It is shared by all sessions that live there,
// immutable once it is, but for what it learns, and holds nothing else alive. Policies
// have one of each server, so it is small.
type Place struct {
	ID          string
	Incarnation int64 // 0 if it is not known

	name  *string               // nil if there is none
	lives atomic.Pointer[State] // of all that live there; nil before the first

	// Index is where the policy that made the place finds its server. Another
	// policy may find another one there, or none.
	Index int32

	marks atomic.Uint32
}

// What is marked of a place.
const (
	bare  = 1 << iota // ID is but an address
	signs             // its server goes by ID itself
)

// Name is what the server calls itself in its answers, where the picker cannot know:
// behind a proxy, or without metadata. Calls carry it, for a proxy to read. It is "" if
// there is none.
func (p *Place) Name() string {
	if p.name == nil {
		return ""
	}
	return *p.name
}

// SetName is for a place that nobody else has yet.
func (p *Place) SetName(name string) {
	if p.name = nil; name != "" {
		p.name = &name
	}
}

// Bare reports whether ID is but an address.
func (p *Place) Bare() bool { return p.marks.Load()&bare != 0 }

// SetBare is for a place that nobody else has yet.
func (p *Place) SetBare(is bool) {
	if p.marks.And(^uint32(bare)); is {
		p.marks.Or(bare)
	}
}

// NewPlace returns a place. index may be anything if no policy made it.
func NewPlace(id string, incarnation int64, index int32) *Place {
	return &Place{ID: id, Incarnation: incarnation, Index: index}
}

// home returns the state of all that live there.
func (p *Place) home() *State {
	if s := p.lives.Load(); s != nil {
		return s
	}
	p.lives.CompareAndSwap(nil, &State{Place: p, Confirmed: true})
	return p.lives.Load()
}

// Called returns the name by which users know the server.
func (p *Place) Called() string {
	if name := p.Name(); name != "" {
		return name
	}
	return p.ID
}

// goesBy reports whether name is what the server is called, or another sealed form of
// it.
func (p *Place) goesBy(name string) bool { return sameName(p.Called(), name) }

func sameName(a, b string) bool { return a == b || sealed.Same(a, b) }

// Named returns a place like p that goes by name; p is nil if no picker chose it.
func (p *Place) Named(name string) *Place {
	if p == nil {
		p = NewPlace(name, 0, -1)
	} else {
		was := p
		p = NewPlace(was.ID, was.Incarnation, was.Index)
		p.SetBare(was.Bare())
	}
	p.SetName(name)
	return p
}

// Same reports whether both are the same start of the same server, as far as is
// known.
func (p *Place) Same(o *Place) bool {
	return p == o || p.ID == o.ID && (p.Incarnation == o.Incarnation || p.Incarnation == 0 || o.Incarnation == 0)
}

// Reason says why a session moved.
type Reason string

// State is where a session is, for one target. Confirmed states are shared and
// constant; a tentative one counts its attempts.
type State struct {
	Place     *Place // nil while it is to leave Prev, if any, for anywhere
	Prev      *Place // where it lived before, confirmed; nil if nowhere
	Reason    Reason // for leaving Prev
	Confirmed bool
	Told      bool     // it is tentative, and a server of the session's says that it is at Place
	Not       []*Place // that have refused it since it was confirmed: it passes them by

	// OnMove is told when the session arrives, if it leaves Prev for good; nil: nobody.
	// It is called under the session's lock.
	OnMove func(Reason)

	// attempts counts the calls under way that were picked for a tentative state.
	// A dead one takes no more.
	attempts atomic.Int32
	sent     atomic.Bool // one of them may have reached the server
}

const dead = -1 << 30

// before is the state that a tentative one goes back to when nothing came of it.
func (s *State) before() *State {
	if s.Prev == nil {
		return nil
	}
	return s.Prev.home()
}

// Session remembers one server for each target. The zero value remembers none.
type Session struct {
	first atomic.Pointer[Binding]

	mu    sync.Mutex // guards what follows, and is held for each change to confirmed
	key   string
	moves *moves
}

// Key returns the session's key.
func (s *Session) Key() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.key
}

// SetKey changes it.
func (s *Session) SetKey(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key = key
}

// Binding is what a session knows of one target.
type Binding struct {
	session *Session
	target  Target
	next    *Binding
	state   atomic.Pointer[State]
	streams map[*Stream]struct{} // guarded by session.mu
}

// Find returns the binding for target, nil if there is none.
func (s *Session) Find(target Target) *Binding {
	for b := s.first.Load(); b != nil; b = b.next {
		if b.target == target {
			return b
		}
	}
	return nil
}

// Quick returns the state for target if it is the first that the session knows, nil
// otherwise. It is short enough to be inlined.
func (s *Session) Quick(target Target) *State {
	if b := s.first.Load(); b != nil && b.target == target {
		return b.state.Load()
	}
	return nil
}

// Bind returns the binding for target, which it makes if there is none.
func (s *Session) Bind(target Target) *Binding {
	for {
		first := s.first.Load()
		if b := s.Find(target); b != nil {
			return b
		}
		if b := (&Binding{session: s, target: target, next: first}); s.first.CompareAndSwap(first, b) {
			return b
		}
	}
}

// All calls f with each target and where the session lives there.
func (s *Session) All(f func(target string, p *Place)) {
	for b := s.first.Load(); b != nil; b = b.next {
		if p := b.Lives(); p != nil {
			f(b.target.Value(), p)
		}
	}
}

// Reset forgets all places.
func (s *Session) Reset() {
	for b := s.first.Load(); b != nil; b = b.next {
		b.Forget(nil)
	}
}

// Load returns the state, nil if it is nowhere.
func (b *Binding) Load() *State {
	if b == nil {
		return nil
	}
	return b.state.Load()
}

// Lives returns where the session lives, confirmed; nil if nowhere yet.
func (b *Binding) Lives() *Place { return b.Load().home() }

// home is where a session lives for certain.
func (s *State) home() *Place {
	switch {
	case s == nil:
		return nil
	case s.Confirmed:
		return s.Place
	default:
		return s.Prev
	}
}

// held is the server that holds what there is of the session, or is about to.
func (s *State) held() *Place {
	if p := s.place(); p != nil {
		return p
	}
	return s.home()
}

func (s *State) place() *Place {
	if s == nil {
		return nil
	}
	return s.Place
}

// Tentative is the state of a session in old that is sent to p for reason. Where
// old was never confirmed there is nothing to leave.
func Tentative(old *State, p *Place, reason Reason) *State {
	s := &State{Place: p, Reason: reason}
	switch {
	case old == nil:
	case old.Confirmed:
		s.Prev = old.Place
	default:
		s.Prev, s.Not = old.Prev, old.Not
		s.Told = old.Told && p != nil && old.Place.Same(p)
		if old.Prev != nil && (old.Place == nil || old.Prev.ID != old.Place.ID) {
			s.Reason = old.Reason // it had left before
		}
	}
	return s
}

// Change makes the state next, if it still is old.
func (b *Binding) Change(old, next *State) bool { return b.state.CompareAndSwap(old, next) }

// Join counts an attempt into a tentative state, and returns what is to be called
// when it is done; nil if the state takes no more.
func (b *Binding) Join(s *State) func(balancer.DoneInfo) {
	for {
		n := s.attempts.Load()
		if n < 0 {
			b.state.CompareAndSwap(s, s.before())
			return nil
		}
		if s.attempts.CompareAndSwap(n, n+1) {
			return func(info balancer.DoneInfo) { b.done(s, info) }
		}
	}
}

// done ends an attempt. Only received bytes prove an answer, and only that none
// were sent proves that the server knows nothing of it.
func (b *Binding) done(s *State, info balancer.DoneInfo) {
	if info.BytesReceived {
		// A server that says that the state is elsewhere is no home.
		if !elsewhere(info) {
			b.Confirm(s, s.Place)
		}
	}
	if info.BytesSent || info.BytesReceived {
		s.sent.Store(true)
	}
	if s.attempts.Add(-1) == 0 && !s.sent.Load() && b.state.Load() == s && s.attempts.CompareAndSwap(0, dead) {
		b.state.CompareAndSwap(s, s.before())
	}
}

// Confirm makes p the home of a session that is in the tentative state s, if it
// still is. p is s.Place, or names it better.
func (b *Binding) Confirm(s *State, p *Place) bool {
	if s == nil || s.Confirmed || b.state.Load() != s {
		return false
	}
	b.session.mu.Lock()
	defer b.session.mu.Unlock()
	return b.arriveLocked(s, p, s.Reason)
}

// arriveLocked makes p the home of a session that was in state s, if it still is,
// tells of the move, if it is one, and ends the streams that are elsewhere.
func (b *Binding) arriveLocked(s *State, p *Place, why Reason) bool {
	if !b.state.CompareAndSwap(s, p.home()) {
		return false
	}
	if from := s.home(); from != nil && !from.isNow(p) {
		b.session.tellLocked(Move{Target: b.target.Value(), From: from.Called(), To: p.Called(), Reason: why})
		if s.OnMove != nil {
			s.OnMove(why)
		}
	}
	for st := range b.streams {
		st.check(p)
	}
	return true
}

// isNow reports whether a session that goes from p to o stays where it is: an address
// that has another name now leads to another server, and a name that was sealed anew to
// the same one.
func (p *Place) isNow(o *Place) bool {
	return p.is(o) && (p.name == nil || o.name == nil || sameName(*p.name, *o.name))
}

// is is Same for places that a name alone may have made. A picker never sees those.
func (p *Place) is(o *Place) bool { return p.Same(o) || sealed.Same(p.ID, o.ID) }

// since reports whether s is not the state was any more. That the name of the place has
// been sealed anew since does not count.
func (s *State) since(was *State) bool {
	if s == nil || was == nil || !s.Confirmed || !was.Confirmed {
		return s != was
	}
	return s != was && !sealed.Same(s.Place.ID, was.Place.ID)
}

// Answered takes in the name that the server goes by which answered a call. The session
// was in state was when the call was made. at is the place that a picker chose for the
// call, nil if none of ours did, so that a proxy must have chosen.
func (b *Binding) Answered(was *State, at *Place, name string) {
	b.session.mu.Lock()
	defer b.session.mu.Unlock()
	now := b.state.Load()
	var p *Place
	switch pl := now.place(); {
	case at != nil:
		// What was chosen by its id needs no name.
		if pl == nil || !pl.Bare() || !pl.Same(at) || pl.Called() == name || (pl.name != nil && now != was) {
			return
		}
		p = pl.Named(name)
	case now.since(was):
		return // another answer was first
	case pl != nil && pl.goesBy(name):
		if now.Confirmed && (pl.Called() == name || now != was) {
			return
		}
		p = (*Place)(nil).Named(name) // if it is a new form, the old one will expire
	case now != nil && pl == nil && now.Prev != nil && now.Prev.goesBy(name):
		return // it is to leave that one
	default:
		p = (*Place)(nil).Named(name)
	}
	why := Moved
	if now != nil && !now.Confirmed {
		why = now.Reason
	}
	b.arriveLocked(now, p, why)
}

// Moved is the reason of a move that a server asked for.
const Moved Reason = "moved"

// Send makes the session go to the server called id, once it is seen to be there: the
// server that it is on says so. was and at are as in [Binding.Answered].
func (b *Binding) Send(was *State, at *Place, id string) {
	for {
		now := b.state.Load()
		held := now.held()
		switch {
		case at == nil && now.since(was), at != nil && held != nil && !held.is(at):
			return // it has left that server
		case now.place() != nil && now.Place.goesBy(id):
			return
		}
		p := NewPlace(id, 0, -1)
		if at == nil {
			p = p.Named(id) // for the proxy
		}
		next := Tentative(now, p, Moved)
		next.Told = true
		if b.state.CompareAndSwap(now, next) {
			return
		}
	}
}

// Leave makes the session leave the server for anywhere, if it is there. was and at
// are as in [Binding.Answered].
func (b *Binding) Leave(was *State, at *Place, reason Reason) {
	for {
		now := b.state.Load()
		if now.place() == nil || (at == nil && now.since(was)) || (at != nil && !now.Place.is(at)) {
			return
		}
		next := Tentative(now, nil, reason)
		if next.Prev == nil {
			next = nil // it had not arrived
		}
		if b.state.CompareAndSwap(now, next) {
			return
		}
	}
}

// Released makes the session live nowhere, if it is on the server that said so. name is
// what that one goes by, "" if it did not say; was and at are as in [Binding.Answered].
func (b *Binding) Released(was *State, at *Place, name string) {
	now := b.state.Load()
	held := now.held()
	if held == nil {
		return
	}
	here := held.goesBy(name)
	if at != nil {
		here = here || held.is(at) && (name == "" || held.name == nil)
	} else {
		here = here || !now.since(was) && name == ""
	}
	if here {
		b.Forget(now)
	}
}

// Forget makes the session live nowhere. With a state, only if it is in that. Its
// streams go on, wherever it will live.
func (b *Binding) Forget(s *State) {
	b.session.mu.Lock()
	defer b.session.mu.Unlock()
	if s == nil {
		b.state.Store(nil)
	} else if !b.state.CompareAndSwap(s, nil) {
		return
	}
	b.streams = nil
}

// Restore makes the session live on p without a word.
func (b *Binding) Restore(p *Place) { b.state.Store(p.home()) }
