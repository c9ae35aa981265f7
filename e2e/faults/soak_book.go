package faults

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// What a soak allows, beyond the fault itself.
const (
	// onWire is how long after a connection was cut its client may learn of it: calls
	// that begin until then may still be sent there.
	onWire = 2 * time.Second
	// afterwards is how long after all is well again what a fault excuses may still
	// come to light: by the next call of a session.
	afterwards = 5 * time.Second
	// untold is how long an answer may be known before the move that explains it.
	untold = 5 * time.Second
)

// spell is an incident that was played.
type spell struct {
	*incident
	at    *server // the victim, if it is a server
	step  int
	hits  []time.Time // when connections were cut
	ended time.Time   // when every client had seen that all was well; zero until then
	lost  int
}

// book has what was played and what was wrong, and judges what happens.
type book struct {
	began  time.Time
	broken chan struct{} // closed at the first wrong

	mu      sync.Mutex
	callers int // that can have a call on the wire
	step    int
	spells  []*spell // the last ones
	did     []string // all of them
	wrong   []string
	closed  bool // nothing is judged any more
}

// called says that n more calls can be on the wire at once.
func (b *book) called(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.callers += n
}

func newBook() *book { return &book{began: time.Now(), broken: make(chan struct{})} }

// begin notes that an incident is about to be played.
func (b *book) begin(i *incident, at *server) *spell {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spells = slices.DeleteFunc(b.spells, func(s *spell) bool {
		return !s.ended.IsZero() && time.Since(s.ended) > time.Minute
	})
	s := &spell{incident: i, at: at, step: b.step}
	b.spells = append(b.spells, s)
	b.did = append(b.did, fmt.Sprintf("%6.1fs  %v", time.Since(b.began).Seconds(), i))
	return s
}

// hit notes that connections are about to be cut.
func (b *book) hit(s *spell) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.hits = append(s.hits, time.Now())
}

// peace notes that every client has seen that all is well.
func (b *book) peace() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.step++
	for _, s := range b.spells {
		if s.ended.IsZero() {
			s.ended = time.Now()
		}
	}
}

// violated notes something that must not be.
func (b *book) violated(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	var under []string
	for _, s := range b.spells {
		if s.recent() {
			under = append(under, s.String())
		}
	}
	if len(b.wrong) == 0 {
		close(b.broken)
	}
	if len(b.wrong) < 20 {
		b.wrong = append(b.wrong, fmt.Sprintf("%.1fs: %s (under way or just over: %q)",
			time.Since(b.began).Seconds(), fmt.Sprintf(format, args...), under))
	}
}

// close ends the judging: what happens from now on is the end's doing.
func (b *book) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
}

func (s *spell) recent() bool { return s.ended.IsZero() || time.Since(s.ended) < afterwards }

// breaksFor reports whether s ends connections of the channel to the server.
func (s *spell) breaksFor(id string, channel int) bool {
	return s.kind.breaks && (s.kind.victim == aServer && s.server == id || s.kind.victim == aChannel && s.channel == channel)
}

// hidesFrom reports whether who has no connection to the server cannot make one.
func (s *spell) hidesFrom(id string) bool {
	switch {
	case !s.kind.hides:
		return false
	case s.kind.victim == etcdPath:
		return s.side != clients // else leases go on, and lists stay
	}
	return s.kind.ofEtcd() || s.server == id
}

// away reports whether the channel may have been without the server at some time from
// since on: it was down, or its connection was broken while it could not be found or
// reached. Then its sessions may move, and calls that require it may fail.
func (b *book) away(id string, channel int, since time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.spells {
		if !s.ended.IsZero() && s.ended.Before(since) {
			continue
		}
		if s.kind.away && s.server == id {
			return true
		}
		if s.breaksFor(id, channel) && slices.ContainsFunc(b.spells, func(o *spell) bool {
			return o.step == s.step && o.hidesFrom(id)
		}) {
			return true
		}
	}
	return false
}

// lost takes in that a call of the channel, which was on the wire to the server from
// began until now, was lost. It reports whether a fault excuses that: one that cut the
// wire meanwhile, or just before. Each caller loses one call each time, at most.
func (b *book) lost(id string, channel int, began time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.spells {
		if !s.breaksFor(id, channel) {
			continue
		}
		for _, h := range s.hits {
			if began.Before(h.Add(onWire)) && time.Now().After(h) && s.lost < len(s.hits)*b.callers {
				s.lost++
				return true
			}
		}
	}
	return false
}
