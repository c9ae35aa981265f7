package faults

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

// World is an etcd, game servers and clients that call them.
type World struct {
	etcd    *cluster
	servers map[string]*server
	direct  *clientv3.Client // by no proxy
	load    *load
	heard   func(line string) bool // takes what servers report; nil if nobody does

	cut    bool          // servers and clients have their own ways to etcd, and clients the same keys
	fence  string        // of servers: what it keeps, "" if there is none
	grace  time.Duration // for which clients keep servers; 0 is the default
	silent bool          // clients' connections to etcd have no keepalive

	back time.Time // when what was broken was mended: recovery is counted from here
	seen time.Duration
}

// Row is one fault.
type Row struct {
	Group, Name string
	Short       bool // it is in the short form, too
	Members     int  // of etcd; 0 means 1
	Silent      bool // clients' connections to etcd have no keepalive

	// Fault plays it. It returns when what it broke is mended and every client has
	// seen the truth (World.truth), or with what went wrong.
	Fault func(w *World) error

	// Failed is how many of the calls may fail: on the wire to a server that was
	// killed, say. nil means none.
	Failed func(calls int64) int64
	// Moves says which servers' sessions may move; nil means none.
	Moves []string
	// Play plays the row, if it takes another process to do so; nil if it does not.
	Play func(Row) (Result, error)
	// Within is how long clients may take to see the truth. 0 means 2 s.
	Within time.Duration

	// Cut gives servers and clients their own ways to etcd, clients the same keys, and the
	// world a server d. With Fence servers have one that keeps that long; with Grace
	// clients keep servers for that long.
	Cut   bool
	Fence *time.Duration
	Grace time.Duration
	// Twice says how many sessions may be served by two servers at once; nil if they are
	// not counted.
	Twice func(n int) bool
	// Slowest is how long a call that succeeds may take; 0 means any time. It tells a
	// server that leaves from one that is waited for.
	Slowest time.Duration
}

// Result is what a row cost.
type Result struct {
	Row             `json:"-"`
	Calls, Lost     int64
	Gap             time.Duration // the longest time without a successful call
	Moved, Needless int
	Both            int           // sessions that two servers served at once, if the row counts them
	Slow            time.Duration // the slowest call that succeeded
	Untold          int           // sessions whose server changed without a word
	Seen            time.Duration // until every client saw the truth
	Goroutines      [2]int        // before and after
	Heap            [2]uint64     // bytes, before and after
	Errors          []string      // of calls, the first few
	Wrong           []string      // what was not within the row's target
	Took            time.Duration
}

// newWorld starts servers, and an etcd for them, as the row has it.
func newWorld(row Row, heard func(line string) bool, ids ...string) (w *World, err error) {
	w = &World{servers: make(map[string]*server), heard: heard, cut: row.Cut, grace: row.Grace}
	if row.Fence != nil {
		w.fence = row.Fence.String()
	}
	if w.etcd, err = newCluster(max(row.Members, 1)); err != nil {
		return w, err
	}
	if err = w.etcd.start(); err != nil {
		return w, err
	}
	if w.direct, err = w.etcd.connect(func(m *member) string { return m.client }); err != nil {
		return w, err
	}
	for _, id := range ids {
		if _, err = w.start(id, ""); err != nil {
			return w, err
		}
	}
	return w, w.listed(ids...)
}

func (w *World) close() {
	if w.load != nil {
		w.load.close()
	}
	for _, s := range w.servers {
		s.close()
	}
	if w.direct != nil {
		_ = w.direct.Close()
	}
	if w.etcd != nil {
		w.etcd.close()
	}
}

// until polls f.
func until(d time.Duration, what string, f func() bool) error {
	for deadline := time.Now().Add(d); ; time.Sleep(5 * time.Millisecond) {
		if f() {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %s", d, what)
		}
	}
}

// listed waits until exactly these servers are in etcd.
func (w *World) listed(ids ...string) error {
	var got []string
	err := until(15*time.Second, "in etcd", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		list, err := registry.List(ctx, w.direct, service)
		if err != nil {
			return false
		}
		got = nil
		for _, i := range list {
			got = append(got, i.Meta.ID)
		}
		return slices.Equal(got, ids)
	})
	if err != nil {
		return fmt.Errorf("%w: want %v, got %v", err, ids, got)
	}
	return nil
}

// mended says that from now on all is well again.
func (w *World) mended() { w.back = time.Now() }

// truth waits until calls without affinity reach exactly these servers from all
// clients, counted from when all was well.
func (w *World) truth(ids ...string) error {
	if w.back.IsZero() {
		w.mended()
	}
	err := until(30*time.Second, fmt.Sprint("calls reach ", ids), func() bool { return w.load.reached(ids...) })
	w.seen = time.Since(w.back)
	if err != nil {
		return err
	}
	// Each session makes one more call, wherever it lives now.
	for _, c := range w.load.channels {
		for _, s := range c.sessions {
			err := until(30*time.Second, "a session finds its way", func() bool {
				_, err := w.load.call(context.Background(), c, s)
				return err == nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// newcomer is the truth that clients have to see after a fault of etcd: a server that
// joined while it lasted.
func (w *World) newcomer() error {
	_, err := w.start("n", "")
	return err
}

func heap() uint64 {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Run plays a row in a world of its own.
func Run(row Row) (Result, error) {
	if row.Play != nil {
		return row.Play(row)
	}
	return play(row)
}

func play(row Row) (r Result, err error) {
	began := time.Now()
	r.Row = row
	ids := []string{"a", "b", "c"}
	if row.Cut {
		ids = append(ids, "d")
	}
	w, err := newWorld(row, nil, ids...)
	defer func() {
		w.close()
		r.Took = time.Since(began)
	}()
	if err != nil {
		return r, err
	}
	w.silent = row.Silent
	// What a client keeps for good (pools, buffers) is there before it is counted.
	for range 2 {
		if err := w.warm(); err != nil {
			return r, err
		}
	}
	_ = until(5*time.Second, "at rest", atRest())
	r.Goroutines[0], r.Heap[0] = runtime.NumGoroutine(), heap()
	if w.load, err = w.startLoad(); err != nil {
		return r, err
	}
	faultErr := row.Fault(w)
	time.Sleep(100 * time.Millisecond)
	l := w.load
	l.stop()
	l.workers.Wait()
	l.mu.Lock()
	r.Calls, r.Lost, r.Gap, r.Errors = l.calls.Load(), l.failed.Load(), max(l.gap, time.Since(l.lastOK)-100*time.Millisecond), l.errs
	moves := slices.Clone(l.moves)
	r.Slow = l.slow
	l.mu.Unlock()
	r.Moved, r.Untold, r.Seen = len(moves), l.untold(), w.seen
	if row.Twice != nil {
		if r.Both, err = w.twice(); err != nil {
			return r, err
		}
	}
	for _, m := range moves {
		if !slices.Contains(row.Moves, m.From) {
			r.Needless++
			if len(r.Errors) < 6 {
				r.Errors = append(r.Errors, fmt.Sprintf("moved: %+v", m))
			}
		}
	}
	l.close()
	w.load = nil
	w.etcd.each(func(m *member) { m.front.thaw(); m.back.thaw() })
	for _, s := range w.servers {
		s.front.thaw()
	}
	if n := w.servers["n"]; n != nil { // its process is one of this rig's
		n.close()
		delete(w.servers, "n")
	}
	_ = until(5*time.Second, "at rest", func() bool { return runtime.NumGoroutine() <= r.Goroutines[0] })
	r.Goroutines[1], r.Heap[1] = runtime.NumGoroutine(), heap()
	r.judge(w, faultErr)
	return r, nil
}

// warm makes a client and ends it.
func (w *World) warm() error {
	c, err := w.newChannel()
	if err != nil {
		return err
	}
	defer c.close()
	l := &load{world: w, channels: []*channel{c}}
	l.timeout.Store(int64(5 * time.Second))
	for range 200 {
		if _, err := l.call(context.Background(), c, affinity.NewSession("")); err != nil {
			return err
		}
	}
	return nil
}

func atRest() func() bool {
	last, same := 0, 0
	return func() bool {
		n := runtime.NumGoroutine()
		if n != last {
			last, same = n, 0
		}
		same++
		return same > 20
	}
}

// judge compares what a row cost with what it may.
func (r *Result) judge(w *World, faultErr error) {
	wrong := func(ok bool, format string, args ...any) {
		if !ok {
			r.Wrong = append(r.Wrong, fmt.Sprintf(format, args...))
		}
	}
	if faultErr != nil {
		wrong(false, "%v", faultErr)
		for _, s := range w.servers {
			if out := s.process.output(); out != "" {
				r.Errors = append(r.Errors, s.id+": "+strings.ReplaceAll(out, "\n", "\n\t"))
			}
		}
	}
	allowed := int64(0)
	if r.Failed != nil {
		allowed = r.Failed(r.Calls)
	}
	within := r.Within
	if within == 0 {
		within = 2 * time.Second
	}
	wrong(r.Lost <= allowed, "%d of %d calls failed, %d may", r.Lost, r.Calls, allowed)
	wrong(r.Calls > 20, "only %d calls were made", r.Calls)
	wrong(r.Needless == 0, "%d sessions moved needlessly", r.Needless)
	if r.Twice != nil {
		wrong(r.Twice(r.Both), "%d sessions were served by two servers at once", r.Both)
	}
	wrong(r.Untold == 0, "%d sessions were not told that another process answers them", r.Untold)
	wrong(r.Seen <= within, "clients saw the truth after %v, not %v", r.Seen.Round(time.Millisecond), within)
	wrong(r.Row.Slowest == 0 || r.Slow <= r.Row.Slowest, "a call took %v, not %v", r.Slow.Round(time.Millisecond), r.Row.Slowest)
	wrong(r.Goroutines[1] <= r.Goroutines[0], "%d goroutines leaked", r.Goroutines[1]-r.Goroutines[0])
	// A heap of a few MB is never the same twice: half a MB is noise.
	wrong(r.Heap[1] <= r.Heap[0]+r.Heap[0]/20+1<<19, "the heap grew from %d to %d bytes", r.Heap[0], r.Heap[1])
}
