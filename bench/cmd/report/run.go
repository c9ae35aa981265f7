package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// A job is benchmarks of one package.
type job struct {
	module  string // a directory beside bench
	pattern string // the brackets of -bench match level by level
	slow    bool   // with the flag -slow, and each benchmark once: not for the check
	counts  bool   // nothing is timed: the check does with one repetition
	quiet   bool   // only for rows that the check leaves out
}

// budgeted is what budgets read.
var budgeted = []job{
	{module: "bench", pattern: `^BenchmarkPick$/^n=(1000|10000)$/^call=(none|key-ctx|session|id-ctx|id-metadata|key-metadata)$/^policy=(custom_)?round_robin$`},
	{module: "bench", pattern: `^BenchmarkPickParallel$/^n=(1000|10000)$/^call=(none|key-ctx|session|id-ctx)$/^policy=(custom_)?round_robin$`, quiet: true},
	{module: "bench", pattern: `^BenchmarkLookup$/^n=(1000|10000)$/^way=(round_robin|homing)$`},
	{module: "bench", pattern: `^Benchmark(BringUp|ConnectionLost)$/^n=(1000|10000)$/^policy=(custom_)?round_robin$`},
	{module: "bench", pattern: `^Benchmark(SameList|Change)$/^n=1000$/./^policy=(custom_)?round_robin$`},
	{module: "bench", pattern: `^BenchmarkBalance$/^n=(100|1000|10000)$/^way=homing$`, counts: true},
	{module: "bench", pattern: `^BenchmarkMemory$/^n=1000$/^policy=(custom_)?round_robin$`, counts: true},
	{module: "bench", pattern: `^BenchmarkRPC$/./^kind=unary$/^setup=(plain|key-ctx|read)$`},
	{module: "bench", pattern: `^BenchmarkRPCInTurn$/./^kind=unary$`},
	slowBringUp,
	burst,
}

// all is every benchmark, and one that needs etcd, which module bench has not.
var all = []job{{module: "bench", pattern: "."}, slowBringUp, burst}

var (
	slowBringUp = job{module: "bench", pattern: "^BenchmarkBringUp$/^n=10000$/^policy=round_robin$", slow: true}
	burst       = job{module: "e2e", pattern: "^BenchmarkBurst$", slow: true}
)

// measure runs jobs count times, but those of counts once for a check. Each is a process in each repetition, so that what is slow
// for a while is so for ours and for rivals. It returns all output too.
func measure(ctx context.Context, root string, jobs []job, count int, benchtime string, check bool) (samples, []byte, error) {
	tmp, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(tmp)
	bins := make(map[string]string)
	for _, j := range jobs {
		if bins[j.module] != "" {
			continue
		}
		bins[j.module] = filepath.Join(tmp, j.module+".test")
		build := exec.CommandContext(ctx, "go", "test", "-c", "-o", bins[j.module], ".")
		build.Dir, build.Stderr = filepath.Join(root, j.module), os.Stderr
		if err := build.Run(); err != nil {
			return nil, nil, fmt.Errorf("build: %w", err)
		}
	}
	s, raw := make(samples), []byte(nil)
	for i := range count {
		start := time.Now()
		for _, j := range jobs {
			if check && j.counts && i > 0 {
				continue
			}
			args := []string{"-test.run=^$", "-test.bench=" + j.pattern, "-test.benchtime=" + benchtime}
			if j.slow {
				args = append(args, "-test.benchtime=1x", "-slow")
			}
			cmd := exec.CommandContext(ctx, bins[j.module], args...)
			cmd.Dir, cmd.Stderr = filepath.Join(root, j.module), os.Stderr
			out, err := cmd.Output()
			raw = append(raw, out...)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w\n%s", j.pattern, err, out)
			}
			s.parse(string(out))
		}
		fmt.Fprintf(os.Stderr, "repetition %d of %d: %s\n", i+1, count, time.Since(start).Round(time.Second))
	}
	return s, raw, nil
}
