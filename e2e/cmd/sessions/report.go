package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// print writes a table of what happened.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "%d sessions on 5 servers: %s\n\n", r.sessions, counts(r.homes))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "what\tthere\tmoved\tneedless\ttold\tbusiest heir\tnew sessions went to\tcalls\tfailed")
	for _, s := range r.steps {
		there, heir := "-", "-"
		if id, _, ok := strings.Cut(s.what, " "); ok && s.had[id] > 0 {
			there = fmt.Sprint(s.had[id])
		}
		if s.moved > 0 {
			heir = fmt.Sprintf("%.2f of the mean", s.spread)
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%s\t%s\t%d\t%d\n",
			s.what, there, s.moved, s.foul, counts(s.told), heir, counts(s.fresh), s.calls, s.failed)
	}
	_ = t.Flush()
	fmt.Fprintln(w)
}

func counts(m map[string]int) string {
	if len(m) == 0 {
		return "-"
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprint(k, " ", m[k]))
	}
	return strings.Join(parts, ", ")
}

// check returns what was not as it should be.
func (r *report) check() error {
	var errs []error
	for _, w := range r.wrong {
		errs = append(errs, errors.New(w))
	}
	return errors.Join(errs...)
}
