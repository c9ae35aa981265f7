package main

import "time"

// absence is that of one start of a server, and so of all that it held in memory. It
// goes by what was done to the server and by who answered, not by what the balancer
// says of it. The zero value is of one that is there.
type absence struct {
	why   string // drained or killed, whatever was first
	from  time.Time
	until time.Time // when the next one under the id first answered somebody; zero if none has
}

func (a *absence) begin(why string, now time.Time) {
	if a.why == "" {
		a.why, a.from = why, now
	}
}

func (a *absence) end(now time.Time) {
	if a.until.IsZero() {
		a.until = now
	}
}

// excuses reports whether a player who was held there had to move: it has drained, or
// was dead for as long as calls have to wait for it.
func (a absence) excuses(now time.Time, window time.Duration) bool {
	if !a.until.IsZero() {
		now = a.until
	}
	return a.why == drained || a.why == killed && now.Sub(a.from) >= window
}
