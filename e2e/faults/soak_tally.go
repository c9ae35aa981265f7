package faults

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/homing-grpc/homing/affinity"
)

// tally counts what a soak's clients see.
type tally struct {
	calls, failed, moves atomic.Int64
	refused              atomic.Int64 // of those that failed: they required a server that was away

	mu       sync.Mutex
	why      map[affinity.Reason]int
	early    int           // calls that a new process answered before the session was told of it
	earliest time.Duration // by how much, at most
	seen     time.Duration // the longest time from the end of a step until all was well
	last     [3]int64      // calls, failed, moves at the last event
}

func (t *tally) move(m affinity.Move) {
	t.moves.Add(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.why == nil {
		t.why = make(map[affinity.Reason]int)
	}
	t.why[m.Reason]++
}

// told takes in that an answer was there before the move that explains it: late because
// OnMove has a goroutine of its own, or because nobody knew that the server had restarted.
func (t *tally) told(restarted bool, late time.Duration) {
	if !restarted {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.early++
	t.earliest = max(t.earliest, late)
}

func (t *tally) recovered(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = max(t.seen, d)
}

// sinceLast returns the calls, failures and moves since it was last called.
func (t *tally) sinceLast() (calls, failed, moves int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := [3]int64{t.calls.Load(), t.failed.Load(), t.moves.Load()}
	last := t.last
	t.last = now
	return now[0] - last[0], now[1] - last[1], now[2] - last[2]
}
