package faults

import (
	"cmp"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/homing-grpc/homing/affinity"
)

// What a session promises, as it can be checked from outside:
//
// The client knows its session's *stays*: one server's process after another. The first
// answer begins the first, and each recorded move (OnMove) the next.
//
//  1. A call is answered by a process on which the session stayed at some time from the
//     call's beginning on. So no process answers a call that began after the session had
//     left it, unless the session has moved back by a recorded move; and A, B, A without
//     two moves is impossible.
//  2. The processes report each call that they accept. A call is accepted once, by the one
//     that answers it. One that was accepted and not answered obeys 1, too, unless the
//     server on which the session stayed was away: then the session was on its way, and
//     tries a server without having moved until that one answers.
//  3. A move leaves only a server that was away.
//
// Three things are so by design, and no violation. An attempt that was on its way before
// the move may be accepted after it, by a server that was stopped, say: no client can call
// it back, and only a fence in the service's storage helps. OnMove is called on a
// goroutine of its own, so an answer may be seen before the move that explains it: it has
// the time untold. And a server that starts again on its old address may answer before it
// is registered: clients cannot know yet that it is another process. Those are told when
// they do, which has to be before the soak's next step.

// worker is a server's process.
type worker struct{ id, pid string }

func (w worker) String() string {
	return fmt.Sprintf("%s (pid %s)", w.id, cmp.Or(w.pid, "not seen yet"))
}

// attempt is a call of a session, a message of a stream included.
type attempt struct {
	n        int
	began    time.Time
	from     int    // the number of the stay when it began
	accepted worker // zero if no server said so yet
	answered worker // zero if it was lost or is under way
	ended    time.Time
}

// stay is a session's stay on a process, whose pid is "" until a call was answered there.
type stay struct {
	worker
	since time.Time
}

// How many attempts of a session are remembered, if it lasts and if it does not, and how
// many stays.
const (
	manyAttempts = 128
	fewAttempts  = 16
	keptStays    = 64
)

// tracked is a session, and all that is known of it.
type tracked struct {
	*affinity.Session
	name    string
	channel int
	book    *book
	tally   *tally

	mu       sync.Mutex
	attempts []*attempt // by number, modulo
	calls    int
	stays    []stay
	dropped  int // stays that are not remembered
	suspects []*attempt
}

func newTracked(name, key string, channel, attempts int, b *book, t *tally) *tracked {
	s := &tracked{Session: affinity.NewSession(key), name: name, channel: channel, book: b, tally: t}
	for range attempts { // all at once, for they are no growth
		s.attempts = append(s.attempts, &attempt{n: -1})
	}
	s.OnMove(s.moved)
	return s
}

// begin numbers an attempt. late is for how long after a move the session's client may
// still make it where the session was.
func (t *tracked) begin(late time.Duration) *attempt {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := &attempt{n: t.calls, began: time.Now(), from: max(t.lastLocked(), 0)}
	for a.from > t.dropped && time.Since(t.stays[a.from-t.dropped].since) < late {
		a.from--
	}
	t.attempts[a.n%len(t.attempts)] = a
	t.calls++
	return a
}

// lastLocked is the number of the stay that lasts, -1 if there was none yet.
func (t *tracked) lastLocked() int { return t.dropped + len(t.stays) - 1 }

func (t *tracked) livesLocked() worker {
	if len(t.stays) == 0 {
		return worker{}
	}
	return t.stays[len(t.stays)-1].worker
}

func (t *tracked) goLocked(w worker) { t.stays = append(t.stays, stay{w, time.Now()}) }

// sinceLocked are the stays since a began.
func (t *tracked) sinceLocked(a *attempt) []stay { return t.stays[max(a.from-t.dropped, 0):] }

// whereLocked is sinceLocked to be read.
func (t *tracked) whereLocked(a *attempt) string {
	var s []string
	for _, st := range t.sinceLocked(a) {
		s = append(s, st.String())
	}
	return strings.Join(s, ", then ")
}

// stayLocked reports whether the session stayed at w, since a began.
func (t *tracked) stayLocked(a *attempt, w worker) bool {
	since := t.sinceLocked(a)
	for i := range since {
		if s := &since[i]; s.id == w.id && (s.pid == "" || s.pid == w.pid) {
			s.pid = w.pid
			return true
		}
	}
	return false
}

// answer takes in who answered.
func (t *tracked) answer(a *attempt, w worker) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a.ended, a.answered = time.Now(), w
	if len(t.stays) == 0 {
		t.goLocked(w)
	}
	if !t.stayLocked(a, w) {
		t.suspects = append(t.suspects, a)
	}
	t.compareLocked(a)
}

// lose takes in that there was no answer.
func (t *tracked) lose(a *attempt) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a.ended = time.Now()
	t.compareLocked(a)
}

// accept takes in that a server has accepted attempt n.
func (t *tracked) accept(n int, w worker) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.attempts[n%len(t.attempts)]
	switch {
	case a.n != n:
		return // too long ago
	case a.accepted != worker{}:
		t.book.violated("call %d of session %s was accepted by %v and again by %v", n, t.name, a.accepted, w)
	}
	a.accepted = w
	t.compareLocked(a)
}

// compareLocked judges an attempt when both sides have told of it.
func (t *tracked) compareLocked(a *attempt) {
	none := worker{}
	if a.ended.IsZero() || a.accepted == none {
		return
	}
	if a.answered != none {
		if a.answered != a.accepted {
			t.book.violated("call %d of session %s was accepted by %v and answered by %v", a.n, t.name, a.accepted, a.answered)
		}
		return
	}
	for _, s := range t.sinceLocked(a) {
		if s.id == a.accepted.id || t.book.away(s.id, t.channel, a.began) {
			return
		}
	}
	if len(t.stays) > 0 {
		t.book.violated("call %d of session %s was accepted by %v, where it never stayed: it has been on %s since", a.n, t.name, a.accepted, t.whereLocked(a))
	}
}

// moved takes in a move.
func (t *tracked) moved(m affinity.Move) {
	t.tally.move(m)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.stays) == 0 {
		t.goLocked(worker{id: m.From}) // its answer has not been seen yet
	}
	at := t.livesLocked()
	if at.id != m.From {
		t.book.violated("session %s moved from %s to %s (%s), but was on %s", t.name, m.From, m.To, m.Reason, at.id)
	}
	if !t.book.away(m.From, t.channel, time.Now().Add(-afterwards)) {
		t.book.violated("session %s moved from %s to %s (%s), without need", t.name, m.From, m.To, m.Reason)
	}
	t.goLocked(worker{id: m.To})
	if len(t.stays) > keptStays {
		t.stays = t.stays[1:]
		t.dropped++
	}
	left := t.suspects[:0]
	for _, a := range t.suspects {
		if t.stayLocked(a, a.answered) {
			t.tally.told(a.answered.id == m.From, time.Since(a.ended))
		} else {
			left = append(left, a)
		}
	}
	t.suspects = left
}

// doubt judges the answers that no move has explained. It reports whether there are any
// that may still be explained.
func (t *tracked) doubt() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := t.suspects[:0]
	for _, a := range t.suspects {
		switch {
		case t.stayLocked(a, a.answered):
		case a.answered.id == t.livesLocked().id:
			left = append(left, a) // it has started again
		case time.Since(a.ended) < untold:
			left = append(left, a)
		default:
			t.book.violated("call %d of session %s was answered by %v, where it never stayed: it has been on %s since",
				a.n, t.name, a.answered, t.whereLocked(a))
		}
	}
	t.suspects = left
	return len(left) > 0
}
