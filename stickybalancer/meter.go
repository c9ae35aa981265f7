package stickybalancer

import (
	"context"
	"math/bits"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	estats "google.golang.org/grpc/experimental/stats"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/collect"
	"github.com/homing-grpc/homing/internal/session"
)

// meter is what one policy counts. While nobody records it, pickers do not know it, and
// picks cost nothing more.
//
// A recorder may hold a lock of its own while it collects, and while reports are
// registered and taken back. So nothing here takes policy.mu, and policy.mu is not held
// when a recorder is called.
type meter struct {
	recorder estats.MetricsRecorder
	target   string
	publish  func() // makes the policy publish a picker that counts
	stop     func() // takes the report back

	counting  atomic.Bool
	closed    bool     // guarded by channels.mu
	stripes   []stripe // nil until counting is set, as held is
	moves     *moves
	onMove    func(session.Reason) // moves.add, made once
	endpoints [endpointKinds]atomic.Int64
	held      *held // the channel's

	flushing     sync.Mutex // guards what has been recorded
	flushedPicks [callctx.Reasons]int64
	flushedMoves [len(moveReasons)]int64
}

// stripe is a part of the counts of picks, on cache lines of its own: cores that
// pick at once mostly write to different ones.
type stripe struct {
	picks [callctx.Reasons]atomic.Int64
	_     [128 - 8*callctx.Reasons]byte
}

// moves counts sessions that left a server's state behind. Sessions hold on to it, some
// for longer than there is the policy, and so it to nothing but the recorder.
type moves struct {
	mu   sync.Mutex // under the sessions' locks
	n    [len(moveReasons)]int64
	late func(session.Reason) // records one itself, once the meter is closed; nil before
}

func (m *moves) add(why session.Reason) {
	m.mu.Lock()
	late := m.late
	if i := slices.Index(moveReasons[:], why); i >= 0 && late == nil {
		m.n[i]++
	}
	m.mu.Unlock()
	if late != nil {
		late(why)
	}
}

func (m *moves) counts() [len(moveReasons)]int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.n
}

// close makes r record what comes from now on.
func (m *moves) close(r estats.MetricsRecorder, target string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.late = func(why session.Reason) { sessionsMetric.Record(r, 1, target, string(why)) }
}

// maxStripes bounds the memory, to 8 KB a channel.
const maxStripes = 64

var moveReasons = [...]session.Reason{
	affinity.ReasonGone, affinity.ReasonDrained, affinity.ReasonFailed, affinity.ReasonRestarted, affinity.ReasonMoved,
}

// newMeter returns a meter and registers it. publish is called, in a goroutine, if only
// a collection shows that somebody records.
func newMeter(r estats.MetricsRecorder, target string, publish func()) *meter {
	m := &meter{recorder: r, target: target, publish: publish, moves: new(moves)}
	m.onMove = m.moves.add
	stop, recorded := collect.Gauges(r, m, endpointMetrics[:]...)
	m.stop = stop
	if recorded {
		m.begin()
	}
	return m
}

// begin begins to count, and reports whether nobody has before.
func (m *meter) begin() bool {
	m.flushing.Lock()
	defer m.flushing.Unlock()
	if m.counting.Load() {
		return false
	}
	m.stripes = newStripes()
	channels.join(m)
	m.counting.Store(true)
	return true
}

func newStripes() []stripe {
	n := 4 * runtime.GOMAXPROCS(0) // few meet by chance
	return make([]stripe, min(1<<bits.Len(uint(n-1)), maxStripes))
}

// close records what is left, and ends it. Attempts that are held are another policy's
// now, if the channel has one.
func (m *meter) close() {
	m.stop()
	if held := channels.leave(m); held != nil {
		held.close()
	}
	m.moves.close(m.recorder, m.target)
	m.flush()
}

// changed notes that a server has another view.
func (m *meter) changed(old, now *view) {
	for kind := range m.endpoints {
		if was, is := old.is(kind), now.is(kind); was != is {
			m.endpoints[kind].Add(int64(step(is)))
		}
	}
}

// picked notes what has become of a pick.
func (m *meter) picked(ctx context.Context, why callctx.Reason, err error) {
	switch {
	case err == nil:
		m.stripes[rand.Uint32()&uint32(len(m.stripes)-1)].picks[why].Add(1)
		if m.held.n.Load() > 0 {
			if one := m.held.end(ctx); one != nil {
				m.waited(time.Since(one.since), why.String())
			}
		}
	case isQueue(err):
		m.held.begin(ctx, func() {
			if one := m.held.end(ctx); one != nil {
				m.waited(one.inVain(), neverSent)
			}
		})
	default:
		m.held.fail(ctx)
	}
}

// waited records for how long an attempt was held.
func (m *meter) waited(d time.Duration, why string) {
	queueMetric.Record(m.recorder, d.Seconds(), m.target, why)
}

// Report implements [estats.AsyncMetricReporter]: it is called whenever the gauges are
// collected, before counters are.
func (m *meter) Report(r estats.AsyncMetricsRecorder) error {
	if !m.counting.Load() && m.begin() {
		go m.publish()
	}
	m.flush()
	for kind, n := range channels.sum(m.target) {
		endpointMetrics[kind].Record(r, n, m.target)
	}
	return nil
}

// flush records what was counted since the last time.
func (m *meter) flush() {
	var picks [callctx.Reasons]int64
	var moves [len(moveReasons)]int64
	m.flushing.Lock()
	for i := range picks {
		sum := int64(0)
		for j := range m.stripes {
			sum += m.stripes[j].picks[i].Load()
		}
		picks[i], m.flushedPicks[i] = sum-m.flushedPicks[i], sum
	}
	for i, sum := range m.moves.counts() {
		moves[i], m.flushedMoves[i] = sum-m.flushedMoves[i], sum
	}
	m.flushing.Unlock()
	for i, n := range picks {
		if n > 0 {
			picksMetric.Record(m.recorder, n, m.target, callctx.Reason(i).String())
		}
	}
	for i, n := range moves {
		if n > 0 {
			sessionsMetric.Record(m.recorder, n, m.target, string(moveReasons[i]))
		}
	}
}

// channels are the meters that are recorded. Of one target a recorder wants one value of
// a gauge, however many channels there are. An attempt is held by its channel: of several
// policies under one parent one may queue it, and another send it.
var channels = meters{byTarget: make(map[string]map[*meter]struct{}), held: make(map[any]*held)}

type meters struct {
	mu       sync.Mutex // the innermost lock
	byTarget map[string]map[*meter]struct{}
	held     map[any]*held // by channel
}

// channel is what those of one channel have in common: gRPC gives each channel a recorder
// of its own, whoever is behind it. A parent's, in its place, need not be comparable.
func (m *meter) channel() any {
	if reflect.ValueOf(m.recorder).Comparable() {
		return m.recorder
	}
	return m
}

func (c *meters) join(m *meter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.closed {
		m.held = new(held)
		return
	}
	if c.byTarget[m.target] == nil {
		c.byTarget[m.target] = make(map[*meter]struct{})
	}
	c.byTarget[m.target][m] = struct{}{}
	if m.held = c.held[m.channel()]; m.held == nil {
		m.held = new(held)
		c.held[m.channel()] = m.held
	}
	m.held.policies++
}

// leave returns the attempts that are held by nobody now, nil if there is another policy.
func (c *meters) leave(m *meter) *held {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.closed = true
	if delete(c.byTarget[m.target], m); len(c.byTarget[m.target]) == 0 {
		delete(c.byTarget, m.target)
	}
	if m.held == nil {
		return nil
	}
	if m.held.policies--; m.held.policies > 0 {
		return nil
	}
	delete(c.held, m.channel())
	return m.held
}

func (c *meters) sum(target string) (n [endpointKinds]int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for m := range c.byTarget[target] {
		for kind := range n {
			n[kind] += m.endpoints[kind].Load()
		}
	}
	return n
}
