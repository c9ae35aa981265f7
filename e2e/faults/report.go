package faults

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Print writes results as a table, and what was wrong below it.
func Print(w io.Writer, results []Result) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tfault\tcalls\tfailed\tgap\tmoved\tneedless\ttwice\tseen after\tgoroutines\theap\tok")
	for _, r := range results {
		ok := "yes"
		if len(r.Wrong) > 0 {
			ok = "NO"
		}
		twice := ""
		if r.Twice != nil {
			twice = fmt.Sprint(r.Both)
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%v\t%d\t%d\t%s\t%v\t%+d\t%+.1f %%\t%s\n", r.Group, r.Name, r.Calls, r.Lost,
			r.Gap.Round(time.Millisecond), r.Moved, r.Needless, twice, r.Seen.Round(time.Millisecond),
			r.Goroutines[1]-r.Goroutines[0], 100*(float64(r.Heap[1])/float64(max(r.Heap[0], 1))-1), ok)
	}
	_ = t.Flush()
	for _, r := range results {
		if len(r.Wrong) > 0 {
			fmt.Fprintf(w, "\n%s: %s\n\t%s\n", r.Group, r.Name, strings.Join(r.Wrong, "\n\t"))
			for _, e := range r.Errors {
				fmt.Fprintf(w, "\t%s\n", e)
			}
		}
	}
}
