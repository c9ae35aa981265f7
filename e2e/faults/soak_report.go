package faults

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// event writes what happens, and what has come of it since the last event.
func (s *soak) event(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls, failed, moves := s.tally.sinceLast()
	fmt.Fprintf(s.Log, "%6.1fs  %-75s %5d calls %3d failed %3d moved\n",
		time.Since(s.book.began).Seconds(), what, calls, failed, moves)
}

func (s *soak) report(r *SoakResult) {
	r.Calls, r.Failed, r.Refused, r.Moves = s.tally.calls.Load(), s.tally.failed.Load(), s.tally.refused.Load(), make(map[string]int)
	s.tally.mu.Lock()
	for why, n := range s.tally.why {
		r.Moves[string(why)] = n
	}
	r.Early, r.Ahead, r.Seen = s.tally.early, s.tally.earliest, s.tally.seen
	s.tally.mu.Unlock()
	s.book.mu.Lock()
	defer s.book.mu.Unlock()
	r.Did, r.Wrong = s.book.did, s.book.wrong
	r.Stopped = r.Stopped && len(r.Wrong) == 0
}

// PrintSoak writes the result as a table; if something was wrong, that and what was done.
func PrintSoak(w io.Writer, r SoakResult) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	ms := func(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
	fmt.Fprintf(t, "seed\t%d\n", r.Seed)
	fmt.Fprintf(t, "faults\t%d in %d steps\n", len(r.Did), r.Steps)
	fmt.Fprintf(t, "calls\t%d\n", r.Calls)
	fmt.Fprintf(t, "lost\t%d\ton the wire to a server that a fault cut off\n", r.Failed-r.Refused)
	fmt.Fprintf(t, "refused\t%d\tthey required a server that was away\n", r.Refused)
	var moves []string
	for _, why := range slices.Sorted(maps.Keys(r.Moves)) {
		moves = append(moves, fmt.Sprint(r.Moves[why], " ", why))
	}
	fmt.Fprintf(t, "moves\t%s\tfrom servers that were away\n", strings.Join(moves, ", "))
	fmt.Fprintf(t, "told late\t%d\tby %v at most: answered by a server before anyone knew that it had restarted\n", r.Early, ms(r.Ahead))
	fmt.Fprintf(t, "all well after\t%v\tat most\n", ms(r.Seen))
	for _, g := range r.Growth {
		fmt.Fprintf(t, "%s\t%d -> %d\tat most %d\n", g.What, g.Before, g.After, g.Most)
	}
	_ = t.Flush()
	if r.Stopped {
		fmt.Fprintln(w, "\nended early, as it was told to: growth was not measured")
	}
	if len(r.Wrong) == 0 {
		return
	}
	fmt.Fprintf(w, "\nWRONG, with -seed %d -servers %d -etcd %d:\n\t%s\n", r.Seed, r.Servers, r.Members, strings.Join(r.Wrong, "\n\t"))
	fmt.Fprintf(w, "\nwhat it did:\n\t%s\n", strings.Join(r.Did, "\n\t"))
}
