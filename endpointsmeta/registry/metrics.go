package registry

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	estats "google.golang.org/grpc/experimental/stats"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/internal/collect"
)

// What follows is declared as gRFC A79 has it. All are on by default: none is recorded
// more often than etcd is asked.
var (
	stalenessMetric = estats.RegisterInt64AsyncGauge(estats.MetricDescriptor{
		Name:        "homing.resolver.etcd.list_staleness",
		Description: "EXPERIMENTAL. Time since etcd last confirmed that the list of endpoints is true. Of several channels of one target, the longest.",
		Unit:        "s",
		Labels:      []string{"grpc.target"},
		Default:     true,
	})
	resyncsMetric = estats.RegisterInt64Count(estats.MetricDescriptor{
		Name:        "homing.resolver.etcd.resyncs",
		Description: "EXPERIMENTAL. Number of times that the endpoints were listed anew, by why: the watch ended, or etcd did not have what it had told.",
		Unit:        "{resync}",
		Labels:      []string{"grpc.target", "homing.reason"},
		Default:     true,
	})
	lostMetric = estats.RegisterInt64Count(estats.MetricDescriptor{
		Name:           "homing.registry.registrations_lost",
		Description:    "EXPERIMENTAL. Number of times that a server's registration was lost: it was not in etcd, or not known to be.",
		Unit:           "{registration}",
		Labels:         []string{"homing.service"},
		OptionalLabels: []string{"homing.server_id"},
		Default:        true,
	})
	regainedMetric = estats.RegisterInt64Count(estats.MetricDescriptor{
		Name:           "homing.registry.registrations_regained",
		Description:    "EXPERIMENTAL. Number of times that a lost registration was put back into etcd.",
		Unit:           "{registration}",
		Labels:         []string{"homing.service"},
		OptionalLabels: []string{"homing.server_id"},
		Default:        true,
	})
)

// Why endpoints are listed anew.
const (
	watchEnded  = "watch_ended"  // compacted, without a leader, or cut
	dataDiffers = "data_differs" // etcd was wiped or replaced, or the watch has missed some
)

// WithMetrics makes the registration's metrics be recorded where those of a channel with
// the same options would be: it is for those that install a recorder of metrics, like
// DialOption of google.golang.org/grpc/stats/opentelemetry. A registration has no channel
// of its own, and gRPC hands recorders to channels alone. Default: none are recorded.
// They are homing.registry.registrations_lost and homing.registry.registrations_regained.
//
// It is an error to give no options. Options that install no recorder, like that DialOption
// without a MeterProvider, are but warned of: gRPC does not tell them from a recorder that
// takes no gauges.
func WithMetrics(opts ...grpc.DialOption) RegisterOption {
	return registerOption(func(r *Registration) error {
		if len(opts) == 0 {
			return errors.New("registry: WithMetrics must be given a dial option that installs a recorder of metrics, got none")
		}
		if i := slices.Index(opts, nil); i >= 0 {
			return fmt.Errorf("registry: WithMetrics: dial option %d must not be nil", i)
		}
		rec, err := recorderOf(opts)
		if err != nil {
			return fmt.Errorf("registry: WithMetrics: %w", err)
		}
		if !takesGauges(rec) {
			logger.Warningf("WithMetrics: its %d dial options seem to install no recorder of metrics: nothing will be recorded of server %q", len(opts), r.id)
		}
		r.recorder = rec
		return nil
	})
}

// recorderOf returns what channels with these options record metrics with. gRPC tells
// that to balancers and resolvers: so one is made whose resolver listens, and finds
// nothing. It dials nobody, but has to be one that gRPC would let dial.
func recorderOf(opts []grpc.DialOption) (estats.MetricsRecorder, error) {
	b := new(recorderBuilder)
	conn, err := grpc.NewClient(b.Scheme()+":///", slices.Concat(
		[]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, opts,
		[]grpc.DialOption{grpc.WithResolvers(b), grpc.WithNoProxy()})...)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.Connect()
	if r := b.recorder.Load(); r != nil && *r != nil {
		return *r, nil
	}
	return nil, errors.New("the options have no recorder")
}

// takesGauges reports whether anybody behind r asks which gauges there are.
func takesGauges(r estats.MetricsRecorder) bool {
	nothing := estats.AsyncMetricReporterFunc(func(estats.AsyncMetricsRecorder) error { return nil })
	stop, recorded := collect.Gauges(r, nothing, stalenessMetric)
	stop()
	return recorded
}

type recorderBuilder struct {
	recorder atomic.Pointer[estats.MetricsRecorder]
}

func (*recorderBuilder) Scheme() string { return "homing-metrics" }

func (b *recorderBuilder) Build(_ resolver.Target, _ resolver.ClientConn, opts resolver.BuildOptions) (resolver.Resolver, error) {
	b.recorder.Store(&opts.MetricsRecorder)
	return nowhere{}, nil
}

type nowhere struct{}

func (nowhere) ResolveNow(resolver.ResolveNowOptions) {}

func (nowhere) Close() {}

// record counts a change of state. It is called under no lock.
func (r *Registration) record(was, is State) {
	out := func(s State) bool { return s == Lost || s == Fenced }
	switch {
	case r.recorder == nil, out(was) == out(is), was == Closed, is == Closed:
	case out(is):
		lostMetric.Record(r.recorder, 1, r.service, r.id)
	default:
		regainedMetric.Record(r.recorder, 1, r.service, r.id)
	}
}

// gauge is what a resolver records. It is safe for concurrent use.
type gauge struct {
	recorder  estats.MetricsRecorder
	target    string
	builder   *builder
	confirmed atomic.Int64 // when etcd last confirmed the list, by the builder's clock
	stop      func()
}

// measure begins to record a resolver's metrics. It is called under no lock: a recorder
// may hold one of its own while it collects.
func (b *builder) measure(service string, target resolver.Target, r estats.MetricsRecorder) *gauge {
	if r == nil {
		r = estats.UnimplementedMetricsRecorder{}
	}
	g := &gauge{recorder: r, target: target.String(), builder: b}
	b.mu.Lock()
	at := b.now()
	if last, ok := b.last[service]; ok {
		at = last.confirmed // it may be long ago
	}
	g.confirmed.Store(at)
	b.mu.Unlock()
	measured.add(g)
	g.stop = r.RegisterAsyncReporter(g, stalenessMetric)
	return g
}

func (g *gauge) close() {
	g.stop()
	measured.remove(g)
}

// Report implements [estats.AsyncMetricReporter].
func (g *gauge) Report(r estats.AsyncMetricsRecorder) error {
	stalenessMetric.Record(r, int64(measured.staleness(g.target)/time.Second), g.target)
	return nil
}

func (g *gauge) resynced(why string) { resyncsMetric.Record(g.recorder, 1, g.target, why) }

// measured are the gauges of all resolvers, by target. Of one target a recorder wants
// one value, however many channels there are, and builders.
var measured = gauges{byTarget: make(map[string]map[*gauge]struct{})}

type gauges struct {
	mu       sync.Mutex // nothing is called under it
	byTarget map[string]map[*gauge]struct{}
}

func (m *gauges) add(g *gauge) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byTarget[g.target] == nil {
		m.byTarget[g.target] = make(map[*gauge]struct{})
	}
	m.byTarget[g.target][g] = struct{}{}
}

func (m *gauges) remove(g *gauge) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if delete(m.byTarget[g.target], g); len(m.byTarget[g.target]) == 0 {
		delete(m.byTarget, g.target)
	}
}

// staleness is the longest among the resolvers of a target.
func (m *gauges) staleness(target string) (longest time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for g := range m.byTarget[target] {
		longest = max(longest, time.Duration(g.builder.now()-g.confirmed.Load()))
	}
	return longest
}

// now is the time since the builder was made.
func (b *builder) now() int64 { return int64(time.Since(b.made)) }

// confirm notes that etcd has confirmed what the builder remembers of a service.
func (b *builder) confirm(service string, g *gauge) {
	now := b.now()
	g.confirmed.Store(now)
	b.mu.Lock()
	defer b.mu.Unlock()
	if last, ok := b.last[service]; ok {
		last.confirmed = now
		b.last[service] = last
	}
}
