package main

import "time"

// noticeTime is what the channels of all players need to hear of a server that is back,
// and to connect, on a machine that has other things to do as well.
const noticeTime = 250 * time.Millisecond

// presence is that of one start of a server, and so of all that it held in memory. It
// goes by what was done to the server and by who answered, not by what the balancer
// says of it. The zero value is of one that has not answered yet.
type presence struct {
	since time.Time // it first answered somebody
	why   string    // drained or killed, whatever was first; "" if it is there
	until time.Time // that was done to it
	next  *presence // of the next start under the id; nil if there is none
}

func (p *presence) answers(now time.Time) {
	if p.since.IsZero() {
		p.since = now
	}
}

func (p *presence) end(why string, now time.Time) {
	if p.why == "" {
		p.why, p.until = why, now
	}
}

// excuses reports whether a player who was held there, and has moved by now, had to. That
// is so if it has drained; or if it was dead for as long as calls have to wait for it,
// and nothing under its id was back meanwhile, for long enough to be noticed.
func (p *presence) excuses(now time.Time, window time.Duration) bool {
	if p.why != killed {
		return p.why == drained
	}
	patient := p.until.Add(window)
	for back := p.next; back != nil; back = back.next {
		from, to := back.since, patient
		if back.why != "" && back.until.Before(to) {
			to = back.until
		}
		if !from.IsZero() && to.Sub(from) >= noticeTime {
			return false
		}
	}
	return !now.Before(patient)
}
