// Package metricstest records metrics for tests, the way that gRPC's OpenTelemetry
// plugin does.
package metricstest

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	estats "google.golang.org/grpc/experimental/stats"
	"google.golang.org/grpc/stats"
)

// Recorder remembers what it is told. It is also a stats handler, so that a channel can
// be given it: grpc.WithStatsHandler(r). The zero value is ready.
type Recorder struct {
	estats.UnimplementedMetricsRecorder

	// collecting is held while reports are made, and while they are registered and taken
	// back, as OpenTelemetry's SDK does it.
	collecting sync.Mutex
	reporters  []*reporter

	mu     sync.Mutex
	counts map[string]int64
	histos map[string][]float64
}

type reporter struct {
	estats.AsyncMetricReporter
	metrics map[*estats.MetricDescriptor]bool
}

// Key is the name of a metric with the values of its labels, like "a.b{x,y}".
func Key(name string, labels ...string) string { return name + "{" + strings.Join(labels, ",") + "}" }

// RecordInt64Count implements [estats.MetricsRecorder].
func (r *Recorder) RecordInt64Count(h *estats.Int64CountHandle, n int64, labels ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		r.counts = make(map[string]int64)
	}
	r.counts[Key(h.Name, labels...)] += n
}

// RecordFloat64Histo implements [estats.MetricsRecorder].
func (r *Recorder) RecordFloat64Histo(h *estats.Float64HistoHandle, v float64, labels ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.histos == nil {
		r.histos = make(map[string][]float64)
	}
	key := Key(h.Name, labels...)
	r.histos[key] = append(r.histos[key], v)
}

// RegisterAsyncReporter implements [estats.MetricsRecorder].
func (r *Recorder) RegisterAsyncReporter(a estats.AsyncMetricReporter, metrics ...estats.AsyncMetric) func() {
	one := &reporter{a, make(map[*estats.MetricDescriptor]bool)}
	for _, m := range metrics {
		one.metrics[m.Descriptor()] = true
	}
	r.collecting.Lock()
	defer r.collecting.Unlock()
	r.reporters = append(r.reporters, one)
	return func() {
		r.collecting.Lock()
		defer r.collecting.Unlock()
		r.reporters = slices.DeleteFunc(r.reporters, func(o *reporter) bool { return o == one })
	}
}

// Reporters returns how many are registered.
func (r *Recorder) Reporters() int {
	r.collecting.Lock()
	defer r.collecting.Unlock()
	return len(r.reporters)
}

// Collect returns all counts and gauges but gRPC's own, by [Key].
func (r *Recorder) Collect() map[string]int64 {
	r.collecting.Lock()
	defer r.collecting.Unlock()
	g := gauges{all: make(map[string]int64)}
	for _, one := range r.reporters {
		g.metrics = one.metrics
		_ = one.Report(&g)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.Copy(g.all, r.counts)
	maps.DeleteFunc(g.all, func(key string, _ int64) bool { return strings.HasPrefix(key, "grpc.") })
	return g.all
}

// Histo returns what was recorded of one histogram.
func (r *Recorder) Histo(name string, labels ...string) []float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.histos[Key(name, labels...)])
}

type gauges struct {
	all     map[string]int64
	metrics map[*estats.MetricDescriptor]bool
}

func (g *gauges) RecordInt64AsyncGauge(h *estats.Int64AsyncGaugeHandle, v int64, labels ...string) {
	if !g.metrics[h.Descriptor()] {
		panic(h.Name + " was not registered")
	}
	g.all[Key(h.Name, labels...)] = v
}

// TagRPC implements [stats.Handler].
func (*Recorder) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements [stats.Handler].
func (*Recorder) HandleRPC(context.Context, stats.RPCStats) {}

// TagConn implements [stats.Handler].
func (*Recorder) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements [stats.Handler].
func (*Recorder) HandleConn(context.Context, stats.ConnStats) {}
