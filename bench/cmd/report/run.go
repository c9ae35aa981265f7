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
}

// budgeted is what budgets read.
var budgeted = []job{
	{"bench", `^BenchmarkPick(Parallel)?$/^n=(1000|10000)$/^call=(none|key-ctx|session|id-ctx|key-metadata)$/^policy=(custom_)?round_robin$`, false},
	{"bench", `^BenchmarkLookup$/^n=(1000|10000)$/^way=(round_robin|homing)$`, false},
	{"bench", `^Benchmark(BringUp|ConnectionLost|Memory|Table)$/^n=(1000|10000)$/^policy=(custom_)?round_robin$`, false},
	{"bench", `^Benchmark(SameList|Change)$/^n=1000$/./^policy=(custom_)?round_robin$`, false},
	{"bench", `^BenchmarkBalance$/./^way=homing$`, false},
	{"bench", `^BenchmarkRPC$/./^kind=unary$/^setup=(plain|key-ctx|read)$`, false},
	{"bench", `^BenchmarkRPCInTurn$/./^kind=unary$`, false},
	slowBringUp,
	burst,
}

// all is every benchmark, and one that needs etcd, which module bench has not.
var all = []job{{"bench", ".", false}, slowBringUp, burst}

var (
	slowBringUp = job{"bench", "^BenchmarkBringUp$/^n=10000$/^policy=round_robin$", true}
	burst       = job{"e2e", "^BenchmarkBurst$", true}
)

// measure runs jobs count times. Each is a process in each repetition, so that what is slow
// for a while is so for ours and for rivals. It returns all output too.
func measure(ctx context.Context, root string, jobs []job, count int, benchtime string) (samples, []byte, error) {
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
