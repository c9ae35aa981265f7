package faults

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
)

// Soak is a run of random faults under load. While it runs, and at its end, it checks
// that
//
//   - no session is on two servers while both live (see tracked),
//   - no call is lost but those that a fault of the moment excuses (see kind),
//   - nothing grows (see growth).
//
// It stops at the first violation, and shrinks nothing: it says what it did.
type Soak struct {
	Seed     uint64        // the faults are drawn from it
	Duration time.Duration // of the faults; the start and the end take some seconds more
	Servers  int           // 3 to 8
	Members  int           // of etcd, 1 or 3
	Log      io.Writer     // takes a line for each event
}

// SoakResult is what a soak did, and what came of it.
type SoakResult struct {
	Soak
	Did     []string // the faults
	Steps   int
	Calls   int64
	Failed  int64
	Refused int64          // of those, calls that required a server that was away
	Moves   map[string]int // by reason
	Early   int            // calls that a server answered before the session was told that it had restarted
	Ahead   time.Duration  // by how much, at most
	Seen    time.Duration  // the longest time until all was well again
	Growth  []Growth       // nil if it ended before it could be measured
	Wrong   []string
	Stopped bool // it was told to end early
	Took    time.Duration
}

// soak is a Soak that runs.
type soak struct {
	Soak
	world *World
	load  *soakLoad
	book  *book
	tally tally
	ids   []string

	mu    sync.Mutex
	holds map[string]holding // what servers have reported, by pid
	first map[string]holding // what they held at first
}

// warmUp is for how long there are calls and no faults before anything is measured.
const warmUp = 3 * time.Second

// Run plays the soak. It returns an error if the world cannot be made; what is wrong
// with the software under test is in the result.
func (o Soak) Run(ctx context.Context) (r SoakResult, err error) {
	s := &soak{Soak: o, book: newBook(), holds: make(map[string]holding), first: make(map[string]holding)}
	for i := range o.Servers {
		s.ids = append(s.ids, string(rune('a'+i)))
	}
	s.load = newSoakLoad(s.book, &s.tally, s.ids)
	r.Soak = o
	defer func() {
		s.close()
		r.Took = time.Since(s.book.began)
	}()
	if err := s.make(); err != nil {
		return r, err
	}
	defer context.AfterFunc(ctx, s.book.close)()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-s.book.broken:
			stop()
		case <-ctx.Done():
		}
	}()
	s.run(ctx, &r)
	s.report(&r)
	return r, nil
}

func (s *soak) make() (err error) {
	if s.world, err = newWorld(Row{Members: s.Members}, s.heard, s.ids...); err != nil {
		return err
	}
	if err = s.load.connect(s.world); err != nil {
		return err
	}
	s.load.start(s.Seed)
	return nil
}

func (s *soak) close() {
	s.load.close()
	if s.world != nil {
		s.world.close()
	}
}

// heard takes what servers report.
func (s *soak) heard(line string) bool { return s.load.heard(line) || s.hold(line) }

// run plays steps until the time is over, ctx ends, or something is wrong.
func (s *soak) run(ctx context.Context, r *SoakResult) {
	s.settle(ctx, "the world is made")
	if !sleepOr(ctx, warmUp) {
		r.Stopped = true
		return
	}
	before := s.measure()
	s.event("warm")
	script := newScript(s.Seed, kinds(s.Members), s.ids, soakChannels)
	for end := time.Now().Add(s.Duration); ctx.Err() == nil; r.Steps++ {
		st := script.next()
		if time.Now().Add(st.lasts()).After(end) {
			break
		}
		s.play(ctx, st)
		s.settle(ctx, "all is well")
		if ctx.Err() == nil {
			s.measureNew()
			s.load.renew(r.Steps)
		}
	}
	if ctx.Err() != nil {
		r.Stopped = true
		return
	}
	r.Growth = s.grown(before)
	s.load.agree(s.pids())
	s.event("the end")
}

// play plays a step, and returns when its faults are over.
func (s *soak) play(ctx context.Context, st step) {
	if !sleepOr(ctx, st.pause) {
		return
	}
	var victims []*server
	for _, i := range st.incidents {
		victims = append(victims, s.world.servers[i.server])
	}
	var faults sync.WaitGroup
	for n, i := range st.incidents {
		faults.Go(func() {
			if !sleepOr(ctx, i.after) {
				return
			}
			s.event(i.String())
			sp := s.book.begin(i, victims[n])
			heal, err := i.kind.begin(s, sp)
			if heal != nil && err == nil {
				if !sleepOr(ctx, i.lasts) {
					return // the whole world is about to end
				}
				err = heal()
				s.event("  over: " + i.String())
			}
			if err != nil {
				s.book.violated("%v: %v", i, err)
			}
		})
	}
	faults.Wait()
}

// settle waits until all is well: etcd lists the servers, every channel reaches them,
// and agrees with the others on where keys live, and every session has been told.
func (s *soak) settle(ctx context.Context, what string) {
	began := time.Now()
	err := s.world.listed(s.ids...)
	if err != nil && ctx.Err() == nil { // once more: the machine may be busy
		err = s.world.listed(s.ids...)
	}
	well := func(within time.Duration, what string, f func() bool) {
		if err == nil && ctx.Err() == nil {
			err = until(within, what, func() bool { return ctx.Err() != nil || f() })
		}
	}
	for _, c := range s.load.channels {
		well(time.Minute, fmt.Sprint("channel ", c.number, " reaches all servers"), func() bool { return s.load.reached(c) })
	}
	s.tally.recovered(time.Since(began))
	well(time.Minute, "all channels agree on the homes of keys", s.load.sameHomes)
	well(30*time.Second, "sessions are told that their server has restarted", func() bool { return len(s.load.doubts()) == 0 })
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		s.book.violated("%v; of sessions %q", err, s.load.doubts())
	}
	s.book.peace()
	s.event(what)
}

// pids are the processes of the servers, by id.
func (s *soak) pids() map[string]string {
	m := make(map[string]string)
	for id, sv := range s.world.servers {
		m[id] = strconv.Itoa(sv.process.cmd.Process.Pid)
	}
	return m
}
