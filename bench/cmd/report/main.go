// Command report measures homing beside its rivals, and writes bench/RESULTS.md: first
// what each budget allows and what was measured, then tables, then plots. With -check it
// compares only, with margins that noise stays within.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	count := flag.Int("count", 6, "repetitions, each in a process of its own")
	benchtime := flag.String("benchtime", "100ms", "how long each benchmark runs in a repetition")
	quick := flag.Bool("quick", false, "only what budgets read")
	checkOnly := flag.Bool("check", false, "write nothing; fail when a budget is missed by far")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *count, *benchtime, *quick, *checkOnly); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, count int, benchtime string, quick, checkOnly bool) error {
	out, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "github.com/homing-grpc/homing/bench").Output()
	if err != nil {
		return fmt.Errorf("no package bench: %w", err)
	}
	dir := strings.TrimSpace(string(out))
	made := commit(ctx, dir)
	jobs := all
	if quick || checkOnly {
		jobs = budgeted
	}
	if checkOnly {
		jobs = slices.DeleteFunc(slices.Clone(jobs), func(j job) bool { return j.slow || j.quiet })
		count, benchtime = 3, "20ms"
	}
	s, raw, err := measure(ctx, filepath.Dir(dir), jobs, count, benchtime, checkOnly)
	if err != nil {
		return err
	}
	if checkOnly {
		if !check(os.Stdout, s, budgets()) {
			return fmt.Errorf("a budget is missed by far: if it should be, say so in budgets.go")
		}
		fmt.Println("every budget is within the check's bounds")
		return nil
	}
	stats, err := statistics(ctx, filepath.Dir(dir), raw)
	if err != nil {
		return err
	}
	r := report{samples: s, budgets: budgets(), count: count, benchtime: benchtime, quick: quick, commit: made}
	if r.tables, err = tables(bytes.NewReader(stats)); err != nil {
		return err
	}
	if err := writePlots(filepath.Join(dir, "plots"), s); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "RESULTS.md"), []byte(r.markdown()), 0o644)
}

// commit is the one that is measured, or nothing where git does not know.
func commit(ctx context.Context, dir string) string {
	git := func(args ...string) string {
		out, _ := exec.CommandContext(ctx, "git", append([]string{"-C", dir}, args...)...).Output()
		return strings.TrimSpace(string(out))
	}
	hash := git("rev-parse", "--short", "HEAD")
	// What a report wrote before is no change.
	if hash != "" && git("status", "--porcelain", "--", ":/", ":!RESULTS.md", ":!plots") != "" {
		hash += " and changes"
	}
	return hash
}
