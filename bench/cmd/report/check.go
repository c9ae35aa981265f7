package main

import (
	"fmt"
	"io"
	"slices"
)

// bound is what the check lets pass. A timed row may be twice its budget, or twice what was
// measured where that is more, so that noise fails nothing and a slip does.
func (b budget) bound() float64 {
	if b.exact {
		return b.limit
	}
	return 2 * max(b.limit, b.over)
}

// check says which rows are out of bounds. It takes the least of the repetitions, which
// noise has touched least.
func check(w io.Writer, s samples, bs []budget) (ok bool) {
	ok = true
	for _, b := range bs {
		if b.quiet || b.slow {
			continue
		}
		xs := b.value(s)
		if len(xs) == 0 {
			fmt.Fprintf(w, "FAIL %s: not measured\n", b.what)
			ok = false
			continue
		}
		if least := slices.Min(xs); !(least <= b.bound()) {
			fmt.Fprintf(w, "FAIL %s: %.3g, budget %.3g, the check allows %.3g\n", b.what, least, b.limit, b.bound())
			ok = false
		}
	}
	return ok
}
