package main

import (
	"cmp"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
)

// move is a line of the table: a player whose server is another than before.
type move struct {
	player, from, to, why, state string
	needed                       bool
}

// happened is told what happens to players, and judges it.
func (d *demo) happened(e playerEvent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch e.kind {
	case came:
		if e.known {
			d.sayLocked("%s is back on %s, which knows them: score %d", e.player, e.to, e.points)
		} else {
			d.sayLocked("%s joins %s", e.player, e.to)
		}
		return
	case carried:
		d.sayLocked("%s takes %d points from %s to %s", e.player, e.points, e.from, e.to)
	case lost:
		d.sayLocked("%s: “%s does not know me. My %d points went with %s; I start again.”", e.player, e.to, e.points, e.from)
	case drifted:
		d.sayLocked("%s is answered by %s, not %s", e.player, e.to, e.from)
	}

	// A server that is there is no reason to move, and one that left in order is
	// no reason to lose anything.
	why := d.gone[e.from]
	m := move{player: e.player, from: e.from, to: e.to, why: "none: it is there", needed: why != ""}
	if why != "" {
		m.why = fmt.Sprintf("%s was %s", e.from, why)
	}
	m.state = fmt.Sprintf("%d points taken along", e.points)
	if e.kind == lost {
		m.state = fmt.Sprintf("%d points lost", e.points)
		if why == drained {
			d.mistakeLocked("%s lost %d points on %s, which left in order", e.player, e.points, e.from)
		}
	}
	d.moves = append(d.moves, m)
	if !m.needed {
		d.mistakeLocked("%s moved from %s to %s needlessly", e.player, e.from, e.to)
	}
}

// printTable prints what moved, and the sums.
func (d *demo) printTable() {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprint(d.out, "\nWhat moved\n\n")
	w := tabwriter.NewWriter(d.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "  player\tfrom\tto\twhy\tstate\tverdict")
	moved := make(map[string]bool)
	needless := 0
	for _, m := range d.moves {
		verdict := "needed"
		if !m.needed {
			verdict = "NEEDLESS"
			needless++
		}
		moved[m.player] = true
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s\n", m.player, m.from, m.to, m.why, m.state, verdict)
	}
	w.Flush()

	var stayed []string
	for _, p := range d.players {
		if !moved[p.name] {
			stayed = append(stayed, p.name)
		}
	}
	failures := d.tally.failed.Load()
	fmt.Fprintf(d.out, "\n  moves: %d, needless: %d\n", len(d.moves), needless)
	fmt.Fprintf(d.out, "  never moved: %s\n", cmp.Or(strings.Join(stayed, ", "), "nobody"))
	fmt.Fprintf(d.out, "  calls: %d, failed: %d\n", d.tally.attempted.Load(), failures)
	fmt.Fprintf(d.out, "  time: %.1fs\n", time.Since(d.started).Seconds())
	if failures > 0 {
		d.mistakeLocked("%d calls failed, first %s", failures, *d.tally.first.Load())
	}
}

func (d *demo) title(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, "\n%s\n\n", s)
}

// say tells what happens, with the seconds since the start.
func (d *demo) say(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sayLocked(format, args...)
}

func (d *demo) sayLocked(format string, args ...any) {
	fmt.Fprintf(d.out, "%6.2fs  %s\n", time.Since(d.started).Seconds(), fmt.Sprintf(format, args...))
}

// mistake notes something that should not have happened.
func (d *demo) mistake(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mistakeLocked(format, args...)
}

func (d *demo) mistakeLocked(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	d.wrong = append(d.wrong, what)
	d.sayLocked("WRONG: %s", what)
}
