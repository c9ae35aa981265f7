package main

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// samples are what was measured: by benchmark, by unit, one number a repetition.
type samples map[string]map[string][]float64

var cores = regexp.MustCompile(`-\d+$`)

// parse reads the output of one repetition.
func (s samples) parse(output string) {
	for line := range strings.Lines(output) {
		f := strings.Fields(line)
		if len(f) < 4 || len(f)%2 != 0 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(cores.ReplaceAllString(f[0], ""), "Benchmark")
		for i := 2; i < len(f); i += 2 {
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				break
			}
			if s[name] == nil {
				s[name] = make(map[string][]float64)
			}
			s[name][f[i+1]] = append(s[name][f[i+1]], v)
		}
	}
}

// of returns the repetitions of one number, nil if it was not measured.
func (s samples) of(name, unit string) []float64 { return s[name][unit] }

// combine computes a number for each repetition from several of it.
func combine(f func(a, b float64) float64, a, b []float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = f(a[i], b[i])
	}
	return out
}

func median(xs []float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	xs = slices.Sorted(slices.Values(xs))
	m := len(xs) / 2
	if len(xs)%2 == 1 {
		return xs[m]
	}
	return (xs[m-1] + xs[m]) / 2
}
