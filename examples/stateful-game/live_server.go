package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/examples/stateful-game/page"
)

// packTime is what the players of a server that drains have to take their things and
// go. Then their streams end.
const packTime = 500 * time.Millisecond

// liveServer is a server, from its start to its end. The next one under its id is
// another liveServer.
type liveServer struct {
	id    string
	cli   *clientv3.Client // its own, so that it can fall silent alone
	lis   *wiredListener
	leave context.CancelFunc

	// Those are guarded by the game's mu.
	state page.ServerState
	there presence
}

// die ends the server as kill -9 does. First its etcd client, or it would sign off: to
// etcd it just falls silent, and its lease has to run out.
func (s *liveServer) die() {
	_ = s.cli.Close()
	s.lis.kill()
}

func (g *liveGame) addServer() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.servers) >= maxServers {
		return fmt.Errorf("%d servers are enough: restart one", maxServers)
	}
	id := fmt.Sprintf("game-%d", len(g.servers)+1)
	if err := g.startLocked(id); err != nil {
		return err
	}
	if len(g.players) > 0 {
		what := " joins. It takes nobody away from others: newcomers only."
		if g.running != page.EtcdRunning {
			what = " starts." + g.unheardLocked()
		}
		g.board.Note(page.Done, id+what)
	}
	return nil
}

// startLocked starts a server, on a port of its own as ever.
func (g *liveGame) startLocked(id string) error {
	if g.ctx.Err() != nil {
		return errors.New("the game is over")
	}
	cli, err := g.etcdClient()
	if err != nil {
		return err
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		_ = cli.Close()
		return err
	}
	ctx, leave := context.WithCancel(context.WithoutCancel(g.ctx))
	s := &liveServer{id: id, cli: cli, lis: &wiredListener{Listener: lis}, leave: leave}
	if was := g.servers[id]; was != nil {
		was.there.next = &s.there
	}
	g.servers[id] = s
	g.board.Server(id, func(is *page.Server) { is.Addr = lis.Addr().String() })
	g.becomesLocked(s, page.Starting)
	g.wg.Go(func() {
		defer leave()
		defer cli.Close()
		err := serveWith(ctx, cli, g.service, id, s.lis,
			[]affinity.ServerOption{affinity.WithDrain(ctx, packTime)},
			// Whoever had the id before is dead, which etcd cannot know yet.
			registry.WithTakeover(),
			registry.WithNotify(func(state registry.State) { g.notified(s, state) }))
		g.ended(s, err)
	})
	return nil
}

func (g *liveGame) becomesLocked(s *liveServer, state page.ServerState) {
	s.state = state
	if g.servers[s.id] == s {
		g.board.Server(s.id, func(is *page.Server) { is.State = state })
	}
}

// notified is told what a server is in the registry.
func (g *liveGame) notified(s *liveServer, state registry.State) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if state == registry.Registered && s.state == page.Starting {
		g.becomesLocked(s, page.Up)
	}
}

// ended is told that a server has returned.
func (g *liveGame) ended(s *liveServer, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case s.state == page.Killed || g.ctx.Err() != nil:
	case s.state == page.Draining && err == nil:
		g.becomesLocked(s, page.Left)
		g.board.Note(page.Done, s.id+" has left, in good order.")
	default:
		s.there.end(killed, time.Now())
		g.becomesLocked(s, page.Killed)
		g.board.Note(page.Done, fmt.Sprintf("%s failed: %v", s.id, err))
	}
}

func (g *liveGame) drain(id string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	s, err := g.findLocked(id)
	if err != nil {
		return err
	}
	if s.state != page.Up {
		return fmt.Errorf("%s is %s", id, s.state)
	}
	s.there.end(drained, time.Now())
	g.becomesLocked(s, page.Draining)
	g.board.Note(page.Done, id+" is told to leave. Its players may take their points along."+g.aloneLocked(id))
	s.leave()
	return nil
}

func (g *liveGame) kill(id string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	s, err := g.findLocked(id)
	if err != nil {
		return err
	}
	if !s.lives() {
		return fmt.Errorf("%s is %s", id, s.state)
	}
	g.board.Note(page.Done, fmt.Sprintf("%s is killed. Its players' calls wait %v for it to come back.%s", id, reconnectWindow, g.aloneLocked(id)))
	g.killLocked(s)
	return nil
}

func (g *liveGame) restart(id string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	s, err := g.findLocked(id)
	if err != nil {
		return err
	}
	if s.lives() {
		g.killLocked(s)
	}
	if err := g.startLocked(id); err != nil {
		return err
	}
	g.board.Note(page.Done, id+" restarts, on another port and with nothing in memory."+g.unheardLocked())
	return nil
}

// aloneLocked says so if no server but this one is up.
func (g *liveGame) aloneLocked(id string) string {
	for _, s := range g.servers {
		if s.id != id && s.state == page.Up {
			return ""
		}
	}
	return " No other server is up: calls fail until one is."
}

// unheardLocked says so if there is no etcd to tell players of a server that starts.
func (g *liveGame) unheardLocked() string {
	if g.running == page.EtcdRunning {
		return ""
	}
	return " Nobody hears of it until etcd is back."
}

// answered is told that the server with this id has answered from addr, and returns
// which start of it that was: nil if it was none that is there now.
func (g *liveGame) answered(id, addr string) *liveServer {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.servers[id]
	if s == nil || s.lis.Addr().String() != addr {
		return nil
	}
	s.there.answers(time.Now())
	return s
}

// lives is for those who hold the game's mu.
func (s *liveServer) lives() bool { return s.state != page.Left && s.state != page.Killed }

func (g *liveGame) killLocked(s *liveServer) {
	s.there.end(killed, time.Now())
	g.becomesLocked(s, page.Killed)
	s.die()
}

func (g *liveGame) findLocked(id string) (*liveServer, error) {
	if s, ok := g.servers[id]; ok {
		return s, nil
	}
	return nil, fmt.Errorf("there is no server %q", id)
}
