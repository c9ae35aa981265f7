package main

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
)

type report struct {
	samples   samples
	budgets   []budget
	count     int
	benchtime string
	quick     bool
	tables    string
}

func (r report) markdown() string {
	var w strings.Builder
	cmd := fmt.Sprintf("go run ./bench/cmd/report -count %d -benchtime %s", r.count, r.benchtime)
	if r.quick {
		cmd += " -quick"
	}
	fmt.Fprintf(&w, "# Results\n\nMade by `%s`: %s, %s, %d cores.\n\n", cmd, runtime.Version(), cpu(), runtime.NumCPU())
	fmt.Fprintf(&w, "Ratios are to `round_robin` in the same repetition, if nothing else is said. Measured is the\n"+
		"median of %d repetitions, beside the least and the most of them: the machine has neighbours.\n\n## Budgets\n\n", r.count)
	w.WriteString("| what | budget | measured | least to most | | why |\n|---|---|---|---|---|---|\n")
	for _, b := range r.budgets {
		w.WriteString(b.row(r.samples))
	}
	w.WriteString("\n## Plots\n\n")
	for _, p := range plots {
		fmt.Fprintf(&w, "![%s](plots/%s.svg)\n\n", p.title, p.file)
	}
	if r.tables != "" {
		fmt.Fprintf(&w, "## Tables\n\nBy benchstat, over all repetitions.\n\n%s", r.tables)
	}
	return w.String()
}

func (b budget) row(s samples) string {
	xs := b.value(s)
	if len(xs) == 0 {
		return fmt.Sprintf("| %s | %.3g | not measured | | | |\n", b.what, b.limit)
	}
	verdict, why := "met", ""
	if !b.met(xs) {
		verdict, why = "**MISSED**", b.why
	}
	return fmt.Sprintf("| %s | %.3g | %.3g | %.3g to %.3g | %s | %s |\n",
		b.what, b.limit, median(xs), slices.Min(xs), slices.Max(xs), verdict, why)
}

func (b budget) met(xs []float64) bool {
	m := median(xs)
	return !math.IsNaN(m) && m <= b.limit
}

// cpu is the processor's name, where Linux tells it.
func cpu() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimLeft(strings.TrimSpace(name), ": \t")
		}
	}
	return runtime.GOARCH
}
