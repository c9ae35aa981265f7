package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// player is one session, and what it has been told.
type player struct {
	session *affinity.Session
	mu      sync.Mutex
	moves   []affinity.Move
}

// step is one thing that happens to the fleet, and what it did to the sessions.
type step struct {
	what   string
	had    map[string]int // sessions by server, before it
	moved  int            // sessions that are on another server now
	foul   int            // of those, the ones that had no reason to
	told   map[string]int // OnMove calls, by reason
	twice  int            // sessions that were told more than once, or of something else
	fresh  map[string]int // where new sessions went
	spread float64        // of those that moved: busiest server over the mean
	calls  int64
	failed int64
}

// report is all of it.
type report struct {
	sessions int
	homes    map[string]int // sessions by server, at first
	steps    []step
	wrong    []string
}

type game struct {
	fleet   *fleet
	rpc     testpb.TestServiceClient
	players []*player
	fresh   int // sessions made by newcomers

	calls, failed atomic.Int64
}

func (g *game) call(ctx context.Context, s *affinity.Session) (string, error) {
	ctx, cancel := context.WithTimeout(s.Context(ctx), 20*time.Second)
	defer cancel()
	g.calls.Add(1)
	resp, err := g.rpc.UnaryCall(ctx, &testpb.SimpleRequest{})
	return resp.GetHostname(), err
}

// round makes a call of each session, and returns where they went.
func (g *game) round(ctx context.Context) ([]string, error) {
	at := make([]string, len(g.players))
	err := parallel(len(g.players), func(i int) (err error) {
		at[i], err = g.call(ctx, g.players[i].session)
		return err
	})
	return at, err
}

// newcomers makes the first calls of n new sessions, and returns how many each server
// got.
func (g *game) newcomers(ctx context.Context, n int) (map[string]int, error) {
	got := make(map[string]int)
	var mu sync.Mutex
	err := parallel(n, func(i int) error {
		id, err := g.call(ctx, affinity.NewSession(fmt.Sprint("newcomer-", g.fresh+i)))
		mu.Lock()
		defer mu.Unlock()
		got[id]++
		return err
	})
	g.fresh += n
	return got, err
}

func parallel(n int, f func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	for range 32 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(i); err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return first
}

// traffic makes calls of all sessions in turn until it is told to stop.
func (g *game) traffic(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; ctx.Err() == nil; i++ {
				if _, err := g.call(ctx, g.players[i%len(g.players)].session); err != nil && ctx.Err() == nil {
					g.failed.Add(1)
				}
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

// step lets do happen under calls and says what became of the sessions. may says which
// of them may move.
func (g *game) step(ctx context.Context, what string, newcomers int, do func() error, may func(from string) bool) (step, error) {
	s := step{what: what, had: make(map[string]int), told: make(map[string]int)}
	before, err := g.round(ctx)
	if err != nil {
		return s, err
	}
	for _, id := range before {
		s.had[id]++
	}
	for _, p := range g.players {
		p.mu.Lock()
		p.moves = nil
		p.mu.Unlock()
	}
	calls, failed := g.calls.Load(), g.failed.Load()
	stop := g.traffic(ctx)
	err = do()
	time.Sleep(200 * time.Millisecond)
	stop()
	if err != nil {
		return s, fmt.Errorf("%s: %w", what, err)
	}
	after, err := g.round(ctx)
	if err != nil {
		return s, fmt.Errorf("%s: %w", what, err)
	}
	if s.fresh, err = g.newcomers(ctx, newcomers); err != nil {
		return s, fmt.Errorf("%s: %w", what, err)
	}
	s.calls, s.failed = g.calls.Load()-calls, g.failed.Load()-failed
	time.Sleep(50 * time.Millisecond) // OnMove runs on a goroutine of its own

	to := make(map[string]int)
	for i, p := range g.players {
		p.mu.Lock()
		for _, m := range p.moves {
			s.told[string(m.Reason)]++
		}
		told := len(p.moves)
		honest := told == 1 && p.moves[0].From == before[i] && p.moves[0].To == after[i]
		p.mu.Unlock()
		if before[i] != after[i] {
			s.moved++
			to[after[i]]++
			if !may(before[i]) {
				s.foul++
			}
			if !honest {
				s.twice++
			}
		} else if told > 1 || told == 1 && !honest {
			s.twice++
		}
	}
	if len(to) > 0 {
		s.spread = float64(slices.Max(slices.Collect(maps.Values(to)))) * float64(len(to)) / float64(s.moved)
	}
	return s, nil
}

// run plays it all.
func run(ctx context.Context, sessions int) (*report, error) {
	endpoint, stopEtcd, err := startEtcd()
	if err != nil {
		return nil, err
	}
	defer stopEtcd()
	g := &game{fleet: &fleet{etcd: endpoint, servers: make(map[string]*server)}}
	defer g.fleet.stop()
	for i := range 5 {
		if err := g.fleet.start(ctx, fmt.Sprint("game-", i+1)); err != nil {
			return nil, err
		}
	}
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	defer cli.Close()
	builder, err := registry.NewBuilder(cli)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("etcd:///"+service, append(affinity.DialOptions(),
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	g.rpc = testpb.NewTestServiceClient(conn)

	for i := range sessions {
		p := &player{session: affinity.NewSession(fmt.Sprint("player-", i))}
		p.session.OnMove(func(m affinity.Move) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.moves = append(p.moves, m)
		})
		g.players = append(g.players, p)
	}
	at, err := g.round(ctx)
	if err != nil {
		return nil, err
	}
	r := &report{sessions: sessions, homes: make(map[string]int)}
	for _, id := range at {
		r.homes[id]++
	}
	return r, g.play(ctx, r)
}

func (g *game) play(ctx context.Context, r *report) error {
	nobody := func(string) bool { return false }
	add := func(s step, err error) error {
		r.steps = append(r.steps, s)
		return err
	}
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			r.wrong = append(r.wrong, fmt.Sprintf(format, args...))
		}
	}

	err := add(g.step(ctx, "game-3 is killed", 0, func() error {
		g.fleet.kill("game-3")
		return nil
	}, func(from string) bool { return from == "game-3" }))
	if err != nil {
		return err
	}
	s := r.steps[0]
	told := s.told[string(affinity.ReasonFailed)] + s.told[string(affinity.ReasonGone)]
	expect(s.moved == s.had["game-3"] && s.foul == 0, "a kill moved %d sessions where there were %d, %d of others", s.moved, s.had["game-3"], s.foul)
	expect(told == s.moved && len(s.told) <= 2, "a kill moved %d sessions and told %v", s.moved, s.told)
	expect(s.spread <= 1.3, "the busiest heir got %.2f times the mean", s.spread)

	err = add(g.step(ctx, "game-4 restarts on another port", 0, func() error {
		g.fleet.kill("game-4")
		return g.fleet.start(ctx, "game-4")
	}, nobody))
	if err != nil {
		return err
	}
	s = r.steps[1]
	expect(s.moved == 0, "a restart moved %d sessions", s.moved)
	expect(s.told[string(affinity.ReasonRestarted)] == s.had["game-4"] && len(s.told) == 1,
		"a restart of a server with %d sessions told %v", s.had["game-4"], s.told)
	err = add(g.step(ctx, "game-6 joins", r.sessions/4,
		func() error { return g.fleet.start(ctx, "game-6") }, nobody))
	if err != nil {
		return err
	}
	s = r.steps[2]
	expect(s.moved == 0 && len(s.told) == 0, "a join moved %d sessions and told %v", s.moved, s.told)
	expect(s.fresh["game-6"] > 0, "the new server got none of the new sessions")

	err = add(g.step(ctx, "game-2 drains", r.sessions/4,
		func() error { return g.fleet.servers["game-2"].reg.Drain(ctx) }, nobody))
	if err != nil {
		return err
	}
	s = r.steps[3]
	expect(s.moved == 0 && len(s.told) == 0, "a drain moved %d sessions and told %v", s.moved, s.told)
	expect(s.fresh["game-2"] == 0, "the draining server got %d new sessions", s.fresh["game-2"])
	expect(s.failed == 0, "%d calls failed at a drain", s.failed)

	for _, s := range r.steps {
		expect(s.twice == 0, "%s: %d sessions were not told exactly once, or not the truth", s.what, s.twice)
	}
	return nil
}
