package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

const (
	soakChannels = 3
	soakSessions = 12 // of each channel, every other one with a key
	soakStreams  = 2  // likewise, each of a session of its own
	soakKeys     = 16

	// A call may wait for a server that is away, and then for another one that is
	// stopped: for 3 s and for 5 s. So none ever ends by its deadline.
	soakTimeout = 20 * time.Second
)

// soakChannel is a client of a soak. Its sessions outlive its gRPC channel.
type soakChannel struct {
	number   int
	cli      *clientv3.Client
	builder  resolver.Builder
	conn     atomic.Pointer[grpc.ClientConn]
	gate     gate
	sessions [soakSessions + soakStreams]atomic.Pointer[tracked] // of calls, then of streams
}

func (c *soakChannel) dial() error {
	conn, err := open(c.builder, stickybalancer.Config{})
	if err == nil {
		c.conn.Store(conn)
	}
	return err
}

func (c *soakChannel) rpc() testpb.TestServiceClient {
	return testpb.NewTestServiceClient(c.conn.Load())
}

// soakLoad is the calls of a soak.
type soakLoad struct {
	book     *book
	tally    *tally
	ids      []string // of the servers that are always there, but for faults
	channels []*soakChannel
	stop     context.CancelFunc
	workers  sync.WaitGroup
	streams  []*soakStream
	over     atomic.Bool // calls may fail now: channels are closed

	mu    sync.Mutex
	names map[string]*tracked // who may be reported
	ended []*tracked          // of those, the sessions that make no more calls, oldest first
	made  int
}

func newSoakLoad(b *book, t *tally, ids []string) *soakLoad {
	return &soakLoad{book: b, tally: t, ids: ids, names: make(map[string]*tracked)}
}

// session makes a session of a channel.
func (l *soakLoad) session(channel, attempts int, keyed bool) *tracked {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.made++
	name, key := fmt.Sprintf("%d-%d", channel, l.made), ""
	if keyed {
		key = "session-" + name
	}
	t := newTracked(name, key, channel, attempts, l.book, l.tally)
	l.names[name] = t
	return t
}

func (l *soakLoad) end(s *tracked) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = append(l.ended, s)
}

// renew ends the nth session of each kind and channel, and begins another in its place,
// so that sessions do not all gather on the servers that nothing has happened to.
func (l *soakLoad) renew(n int) {
	for _, c := range l.channels {
		for i := range c.sessions {
			if i%4 == n%4 {
				l.end(c.sessions[i].Swap(l.session(c.number, manyAttempts, i%2 == n/4%2)))
			}
		}
	}
}

// connect makes the channels.
func (l *soakLoad) connect(w *World) error {
	for i := range soakChannels {
		c := &soakChannel{number: i}
		l.channels = append(l.channels, c)
		var err error
		if c.cli, err = w.frontClient(); err != nil {
			return err
		}
		if c.builder, err = registry.NewBuilder(c.cli); err != nil {
			return err
		}
		if err = c.dial(); err != nil {
			return err
		}
		// A channel that has never had a list says so, if etcd takes its time.
		if err = until(20*time.Second, "first list", func() bool {
			_, err := c.rpc().UnaryCall(bg, &testpb.SimpleRequest{})
			return err == nil
		}); err != nil {
			return err
		}
		for j := range c.sessions {
			c.sessions[j].Store(l.session(i, manyAttempts, j%2 == 0))
		}
	}
	return nil
}

// start begins to call.
func (l *soakLoad) start(seed uint64) {
	var ctx context.Context
	ctx, l.stop = context.WithCancel(bg)
	n := uint64(0)
	l.book.called(3 * soakChannels) // newcomers make three calls at once
	again := func(c *soakChannel, pause time.Duration, f func(*rand.Rand)) {
		n++
		l.book.called(1)
		rng := rand.New(rand.NewPCG(seed, n))
		l.workers.Go(func() {
			for ctx.Err() == nil && c.gate.enter(ctx) {
				f(rng)
				c.gate.leave()
				sleepOr(ctx, pause/2+time.Duration(rng.Int64N(int64(pause))))
			}
		})
	}
	for _, c := range l.channels {
		for range 4 {
			again(c, 100*time.Millisecond, func(*rand.Rand) { _, _ = l.call(c, anywhere()) })
		}
		for range 2 {
			again(c, 100*time.Millisecond, func(r *rand.Rand) { _, _ = l.call(c, byKey(r.IntN(soakKeys))) })
		}
		again(c, 100*time.Millisecond, func(r *rand.Rand) { _, _ = l.call(c, byID(l.ids[r.IntN(len(l.ids))])) })
		again(c, 100*time.Millisecond, func(r *rand.Rand) { _, _ = l.call(c, required(l.ids[r.IntN(len(l.ids))])) })
		for i := range c.sessions {
			slot := &c.sessions[i]
			if i >= soakSessions {
				st := &soakStream{load: l, channel: c, slot: slot}
				l.streams = append(l.streams, st)
				again(c, 150*time.Millisecond, func(*rand.Rand) { st.talk() })
			} else if i%4/2 == 0 { // half of them call twice at a time
				again(c, 150*time.Millisecond, func(*rand.Rand) { _, _ = l.call(c, of(slot.Load())) })
			}
			again(c, 150*time.Millisecond, func(*rand.Rand) { _, _ = l.call(c, of(slot.Load())) })
		}
		again(c, 400*time.Millisecond, func(r *rand.Rand) { l.newcomer(c, r) })
	}
	l.workers.Go(func() {
		for sleepOr(ctx, 500*time.Millisecond) {
			l.sweep()
		}
	})
}

// sleepOr reports false if ctx ended first.
func sleepOr(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// aim is where a call is to go.
type aim struct {
	what     string
	ctx      context.Context
	session  *tracked
	id       string // "" if it does not matter
	required bool
}

func anywhere() aim { return aim{what: "call without affinity", ctx: bg} }

func byKey(n int) aim {
	key := fmt.Sprint("key-", n)
	return aim{what: "call by key " + key, ctx: affinity.WithKey(bg, key)}
}

func byID(id string) aim { return aim{what: "call by id " + id, ctx: affinity.With(bg, id), id: id} }

func required(id string) aim {
	return aim{what: "call that requires " + id, ctx: affinity.Require(bg, id), id: id, required: true}
}

func of(s *tracked) aim {
	return aim{what: "call of session " + s.name, ctx: s.Context(bg), session: s}
}

// call makes a call, judges it, and returns who answered.
func (l *soakLoad) call(c *soakChannel, a aim) (worker, error) {
	req := &testpb.SimpleRequest{}
	var at *attempt
	if a.session != nil {
		at = a.session.begin(0)
		req.Payload = &testpb.Payload{Body: []byte(a.session.name + " " + strconv.Itoa(at.n))}
	}
	var route affinity.Route
	began := time.Now()
	ctx, cancel := context.WithTimeout(affinity.Observe(a.ctx, &route), soakTimeout)
	resp, err := c.rpc().UnaryCall(ctx, req)
	cancel()
	if l.over.Load() {
		return worker{}, err
	}
	l.tally.calls.Add(1)
	if err != nil {
		l.failed(c, a, &route, began, err)
		if at != nil {
			a.session.lose(at)
		}
		return worker{}, err
	}
	by := worker{resp.GetHostname(), resp.GetUsername()}
	if at != nil {
		a.session.answer(at, by)
	}
	if a.id != "" && by.id != a.id && (a.required || !l.book.away(a.id, c.number, began)) {
		l.book.violated("a %s was answered by %v", a.what, by)
	}
	return by, nil
}

// failed judges a call that failed. Only one that was on the wire while a fault cut it
// may, and one that requires a server that is away.
func (l *soakLoad) failed(c *soakChannel, a aim, route *affinity.Route, began time.Time, err error) {
	l.tally.failed.Add(1)
	switch code := status.Code(err); {
	case code != codes.Unavailable && code != codes.Canceled:
	case a.required && code == codes.Unavailable && l.book.away(a.id, c.number, began):
		l.tally.refused.Add(1)
		return
	case l.book.lost(route.ID(), c.number, began):
		return
	}
	l.book.violated("a %s on channel %d, %v, failed after %v: %v", a.what, c.number, route, time.Since(began).Round(time.Millisecond), err)
}

// newcomer is a session that makes its first calls at once, and a few more.
func (l *soakLoad) newcomer(c *soakChannel, r *rand.Rand) {
	s := l.session(c.number, fewAttempts, r.IntN(2) == 0)
	var first sync.WaitGroup
	for range 3 {
		first.Go(func() { _, _ = l.call(c, of(s)) })
	}
	first.Wait()
	for range 2 {
		_, _ = l.call(c, of(s))
	}
	l.end(s)
}

// sweep judges what time alone shows, and forgets sessions that have ended, but for the
// last ones: a call of theirs may be reported yet.
func (l *soakLoad) sweep() {
	l.mu.Lock()
	all := make([]*tracked, 0, len(l.names))
	for _, s := range l.names {
		all = append(all, s)
	}
	for len(l.ended) > 60 {
		delete(l.names, l.ended[0].name)
		l.ended = slices.Delete(l.ended, 0, 1)
	}
	l.mu.Unlock()
	for _, s := range all {
		s.doubt()
	}
}

// doubts returns the sessions that have to be told of a move yet.
func (l *soakLoad) doubts() (names []string) {
	for _, c := range l.channels {
		for i := range c.sessions {
			if s := c.sessions[i].Load(); s.doubt() {
				names = append(names, s.name)
			}
		}
	}
	return names
}

// heard takes a server's report of a call that it accepted.
func (l *soakLoad) heard(line string) bool {
	rest, ok := strings.CutPrefix(line, "accepted ")
	if !ok {
		return false
	}
	f := strings.Fields(rest) // id, pid, session, number
	if len(f) != 4 {
		return false
	}
	n, err := strconv.Atoi(f[3])
	l.mu.Lock()
	s := l.names[f[2]]
	l.mu.Unlock()
	if s != nil && err == nil {
		s.accept(n, worker{f[0], f[1]})
	}
	return true
}

// shut lets no more calls begin, waits for those under way, and hangs up the streams, which
// will be opened anew. It reports false if calls do not end.
func (l *soakLoad) shut() bool {
	for _, c := range l.channels {
		c.gate.shut()
	}
	ok := true
	for _, c := range l.channels {
		ok = c.gate.left(2*soakTimeout) && ok
	}
	if ok {
		for _, s := range l.streams {
			s.hangUp()
		}
	}
	return ok
}

func (l *soakLoad) open() {
	for _, c := range l.channels {
		c.gate.open()
	}
}

func (l *soakLoad) close() {
	l.over.Store(true)
	if l.stop != nil {
		l.stop()
	}
	for _, c := range l.channels {
		if conn := c.conn.Load(); conn != nil {
			_ = conn.Close()
		}
	}
	l.workers.Wait()
	for _, c := range l.channels {
		if c.cli != nil {
			_ = c.cli.Close()
		}
	}
}
