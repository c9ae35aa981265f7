package main

import "time"

// judge knows which servers are gone, and so which moves are needed. It goes by what
// was done to the servers, and by who answered; not by what the balancer says of it.
type judge struct {
	window time.Duration
	gone   map[string]absence // by server
}

// absence lasts until the next server under the id has answered somebody.
type absence struct {
	why   string // drained or killed
	since time.Time
}

func (j *judge) leaves(id, why string, now time.Time) {
	if _, ok := j.gone[id]; !ok {
		j.gone[id] = absence{why, now}
	}
}

// answers is told that a server answers that has not been told to leave.
func (j *judge) answers(id string) { delete(j.gone, id) }

// verdict says whether a move away from a server is needed: that one has drained, or
// has been dead for as long as calls have to wait for it. why is "" if it is there.
func (j *judge) verdict(from string, now time.Time) (why string, needed bool) {
	a, ok := j.gone[from]
	switch {
	case !ok:
		return "", false
	case a.why == killed:
		return a.why, now.Sub(a.since) >= j.window
	default:
		return a.why, true
	}
}
