package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// budgeted are the benchmarks that budgets read. The brackets of -bench match level by level.
var budgeted = []string{
	`^BenchmarkPick(Parallel)?$/^n=(1000|10000)$/^call=(none|key-ctx|session|id-ctx|key-metadata)$/^policy=(custom_)?round_robin$`,
	`^BenchmarkLookup$/^n=(1000|10000)$/^way=(round_robin|homing)$`,
	`^Benchmark(BringUp|ConnectionLost|Memory|Table)$/^n=(1000|10000)$/^policy=(custom_)?round_robin$`,
	`^Benchmark(SameList|Change)$/^n=1000$/./^policy=(custom_)?round_robin$`,
	`^BenchmarkBalance$/./^way=homing$`,
	`^BenchmarkRPC$/./^kind=unary$/^setup=(plain|key-ctx|read)$`,
	`^BenchmarkRPCInTurn$/./^kind=unary$`,
}

// measure runs the benchmarks that match count times. Each repetition is a process, so that what
// is slow for a while is so for ours and for rivals. It returns all output too.
func measure(ctx context.Context, dir string, patterns []string, count int, benchtime string) (samples, []byte, error) {
	tmp, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(tmp)
	bin := filepath.Join(tmp, "bench.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", bin, ".")
	build.Dir, build.Stderr = dir, os.Stderr
	if err := build.Run(); err != nil {
		return nil, nil, fmt.Errorf("build: %w", err)
	}
	s, all := make(samples), []byte(nil)
	for i := range count {
		start := time.Now()
		for _, p := range patterns {
			cmd := exec.CommandContext(ctx, bin, "-test.run=^$", "-test.bench="+p, "-test.benchtime="+benchtime)
			cmd.Dir, cmd.Stderr = dir, os.Stderr
			out, err := cmd.Output()
			all = append(all, out...)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w\n%s", p, err, out)
			}
			s.parse(string(out))
		}
		fmt.Fprintf(os.Stderr, "repetition %d of %d: %s\n", i+1, count, time.Since(start).Round(time.Second))
	}
	return s, all, nil
}
