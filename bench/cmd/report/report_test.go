package main

import (
	"encoding/xml"
	"io"
	"math"
	"strings"
	"testing"
)

const output = `goos: linux
BenchmarkPick/n=10/policy=custom_round_robin-2   1000   6.0 ns/op   0 B/op   0 allocs/op
BenchmarkPick/n=10/policy=round_robin-2          1000   5.0 ns/op   0 B/op   0 allocs/op
BenchmarkBalance/n=100/way=maglev-64k-2   1   0.5 %needless   1.07 busiest/mean
PASS
`

func TestALineIsReadWithAllItsUnitsAndWithoutItsCores(t *testing.T) {
	s := make(samples)
	s.parse(output)
	s.parse(output)
	if got := s.of("Pick/n=10/policy=round_robin", "ns/op"); len(got) != 2 || got[0] != 5 {
		t.Errorf("got %v, want two of 5", got)
	}
	if got := s.of("Balance/n=100/way=maglev-64k", "busiest/mean"); len(got) != 2 || got[1] != 1.07 {
		t.Errorf("got %v, want two of 1.07", got)
	}
}

func TestARatioIsTakenWithinARepetition(t *testing.T) {
	s := samples{"a": {"ns/op": {10, 40, 9}}, "b": {"ns/op": {5, 20, 9}}}
	if got := median(ratio("a", "b", "ns/op")(s)); got != 2 {
		t.Errorf("got %v, want 2", got)
	}
}

func TestAMedianIsInTheMiddle(t *testing.T) {
	for want, xs := range map[float64][]float64{2: {3, 1, 2}, 2.5: {4, 1, 3, 2}, 7: {7}} {
		if got := median(xs); got != want {
			t.Errorf("%v: got %v, want %v", xs, got, want)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("of nothing: got %v", got)
	}
}

func TestAnExponentIsOneWhereTimeGrowsWithServers(t *testing.T) {
	s := samples{"a": {"ns/op": {100}}, "b": {"ns/op": {1000}}}
	if got := exponent("a", "b")(s); got[0] != 1 {
		t.Errorf("got %v, want 1", got)
	}
}

func TestTheCheckAllowsNoiseAndNoMoreAllocations(t *testing.T) {
	for _, tc := range []struct {
		name string
		b    budget
		x    float64
		want bool
	}{
		{"inside", budget{limit: 1}, 0.9, true},
		{"noise", budget{limit: 1}, 1.9, true},
		{"a slip", budget{limit: 1}, 2.1, false},
		{"known to be over", budget{limit: 1, over: 3}, 5, true},
		{"further over", budget{limit: 1, over: 3}, 7, false},
		{"an allocation", budget{limit: 0, exact: true}, 1, false},
		{"no allocation", budget{limit: 0, exact: true}, 0, true},
		{"two cores, and neighbours", budget{limit: 1, quiet: true}, 5, true},
		{"a slow rival", budget{limit: 1, slow: true}, 5, true},
		{"not a number", budget{limit: 1}, math.NaN(), false},
	} {
		tc.b.value = func(samples) []float64 { return []float64{tc.x} }
		if got := check(io.Discard, nil, []budget{tc.b}); got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestWhatIsNotMeasuredFailsTheCheck(t *testing.T) {
	if check(io.Discard, samples{}, budgets()) {
		t.Error("nothing was measured, and the check is content")
	}
}

func TestAPlotIsWellFormed(t *testing.T) {
	for _, s := range []samples{{}, {"BringUp/n=10/policy=round_robin": {"ns/op": {5000}}}} {
		for _, p := range plots {
			d := xml.NewDecoder(strings.NewReader(p.svg(s)))
			for {
				if _, err := d.Token(); err == io.EOF {
					break
				} else if err != nil {
					t.Fatalf("%s: %v", p.file, err)
				}
			}
		}
	}
}

const stats = `.name: Pick
,3,,10,,,
,sec/op,CI,sec/op,CI,vs base,P
none round_robin,3.7e-09,2%,2.91e-06,∞,-21.56%,p=0.002 n=6
none least_request,1e-09,0%
geomean,1,,2,,+3%,

,3,,10,,,
,B/op,CI,B/op,CI,vs base,P
none round_robin,3,0%,2,0%,-2%,p=0.002 n=6

.name: RPCInTurn
,,
,p50-ns:answered,CI
tcp unary,59608,1%

,,
,p50-ns:plain,CI
tcp unary,57976,1%
`

func TestATableHasItsServersOrItsUnitsAsColumns(t *testing.T) {
	ts, err := tables(strings.NewReader(stats))
	if err != nil || len(ts) != 2 {
		t.Fatalf("%d tables, %v", len(ts), err)
	}
	for i, want := range []string{
		"### Pick, time\n\n| N = | 3 | 10 |\n|---|---:|---:|\n| none round_robin | 3.7 ns ±2% | 2.91 µs |\n| none least_request | 1 ns |  |\n\n",
		"### RPCInTurn\n\n|  | p50, plain | p50, answered |\n|---|---:|---:|\n| tcp unary | 58 µs ±1% | 59.6 µs ±1% |\n\n",
	} {
		if got := ts[i].markdown(); got != want {
			t.Errorf("got:\n%s\nwant:\n%s", got, want)
		}
	}
}

func TestALimitReadsAsAFraction(t *testing.T) {
	for limit, want := range map[float64]string{1. / 15: "1/15 = 0.0667", 1.015: "1.015", 0.9: "0.9", 0: "0", 13: "13"} {
		if got := (budget{limit: limit}).allowed(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
