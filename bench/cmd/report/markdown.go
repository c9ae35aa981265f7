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
	commit    string
	tables    []*table
}

func (r report) markdown() string {
	var w strings.Builder
	cmd := fmt.Sprintf("go run ./bench/cmd/report -count %d -benchtime %s", r.count, r.benchtime)
	if r.quick {
		cmd += " -quick"
	}
	fmt.Fprintf(&w, "# Results\n\nMade by `%s`: %s, %s, %d cores", cmd, runtime.Version(), cpu(), runtime.NumCPU())
	if r.commit != "" {
		fmt.Fprintf(&w, ", commit %s", r.commit)
	}
	met := 0
	for _, b := range r.budgets {
		if b.met(b.value(r.samples)) {
			met++
		}
	}
	fmt.Fprintf(&w, ".\n\n%d of %d budgets are met. Ratios are to `round_robin` in the same repetition, if nothing else\n"+
		"is said. Measured is the median of %d repetitions, beside the least and the most of them: the\n"+
		"machine has neighbours.\n\n## Budgets\n\n", met, len(r.budgets), r.count)
	w.WriteString("| what | budget | measured | least to most | | why |\n|---|---:|---:|---|---|---|\n")
	for _, b := range r.budgets {
		w.WriteString(b.row(r.samples))
	}
	w.WriteString("\n## Tables\n\nBy benchstat: medians, and how far from them the middle of the repetitions may be, where there\n" +
		"are enough of them (six). README.md says what the benchmarks are.\n\n")
	for _, t := range r.tables {
		w.WriteString(t.markdown())
	}
	w.WriteString("## Plots\n\n")
	for _, p := range plots {
		fmt.Fprintf(&w, "![%s](plots/%s.svg)\n\n", p.title, p.file)
	}
	return strings.TrimRight(w.String(), "\n") + "\n"
}

func (b budget) row(s samples) string {
	xs := b.value(s)
	if len(xs) == 0 {
		return fmt.Sprintf("| %s | %s | not measured | | | |\n", b.what, b.allowed())
	}
	verdict, why := "met", ""
	if !b.met(xs) {
		verdict, why = "**MISSED**", b.why
	}
	return fmt.Sprintf("| %s | %s | %.3g | %.3g to %.3g | %s | %s |\n",
		b.what, b.allowed(), median(xs), slices.Min(xs), slices.Max(xs), verdict, why)
}

// allowed is the limit as one says it.
func (b budget) allowed() string {
	if n := math.Round(1 / b.limit); n >= 5 && math.Abs(n*b.limit-1) < 1e-9 {
		return fmt.Sprintf("1/%g = %.3g", n, b.limit)
	}
	return fmt.Sprintf("%.4g", b.limit)
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
