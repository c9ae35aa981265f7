package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/examples/stateful-game/gamepb"
	"github.com/homing-grpc/homing/examples/stateful-game/page"
)

const (
	maxServers = 8
	maxPlayers = 52

	// lookTime is the time between two calls without affinity.
	lookTime = 150 * time.Millisecond
)

// names are the players'; those who come later have a number, too.
var names = []string{
	"ada", "bo", "cleo", "dan", "eve", "finn", "gil", "hal", "ivy", "joy", "kit", "leo", "mia",
	"ned", "ola", "pat", "quin", "ron", "sue", "tom", "una", "vic", "wes", "xia", "yan", "zoe",
}

// liveGame is an etcd, servers and players, and what may be done to them. It writes on
// the board what becomes of them.
type liveGame struct {
	ctx     context.Context // of the players
	stop    context.CancelFunc
	service string
	board   *page.Board
	story   story
	wg      sync.WaitGroup // players, servers, and whatever else goes on

	etcd   *etcdServer      // its methods are called by one goroutine at a time
	cables wires            // from everybody to etcd
	cli    *clientv3.Client // the players'
	finder resolver.Builder // likewise

	mu      sync.Mutex // guards what follows
	running page.EtcdState
	servers map[string]*liveServer
	players []*livePlayer
}

func newLiveGame(ctx context.Context, service string) (*liveGame, error) {
	etcd, err := newEtcd()
	if err != nil {
		return nil, err
	}
	g := &liveGame{
		service: service,
		board:   page.NewBoard(),
		etcd:    etcd,
		servers: make(map[string]*liveServer),
	}
	g.story.board = g.board
	g.ctx, g.stop = context.WithCancel(ctx)
	g.isEtcd(page.EtcdRunning)
	if g.cli, err = g.etcdClient(); err == nil {
		g.finder, err = registry.NewBuilder(g.cli)
	}
	if err != nil {
		g.end()
		return nil, err
	}
	return g, nil
}

// begin starts three servers, nine players, and somebody who just looks.
func (g *liveGame) begin() error {
	for range 3 {
		if err := g.addServer(); err != nil {
			return err
		}
	}
	g.board.Note(page.Done, "Three servers and nine players are there. Kill a server, stop etcd: who moves?")
	if err := g.awaitServers(); err != nil {
		return err
	}
	for range 9 {
		if err := g.addPlayer(); err != nil {
			return err
		}
	}
	conn, err := g.dial()
	if err != nil {
		return err
	}
	g.wg.Go(func() {
		defer conn.Close()
		g.look(gamepb.NewGameClient(conn))
	})
	return nil
}

// awaitServers waits until all servers are up.
func (g *liveGame) awaitServers() error {
	ctx, cancel := context.WithTimeout(g.ctx, patience)
	defer cancel()
	for {
		g.mu.Lock()
		missing := slices.ContainsFunc(slices.Collect(maps.Values(g.servers)),
			func(s *liveServer) bool { return s.state == page.Starting })
		g.mu.Unlock()
		if !missing {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the servers do not start: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// end ends everything.
func (g *liveGame) end() {
	g.stop()
	g.mu.Lock()
	for _, s := range g.servers {
		if g.running == page.EtcdRunning {
			s.leave()
		} else {
			s.die() // nobody is there to say goodbye to
		}
	}
	g.mu.Unlock()
	g.wg.Wait()
	if g.cli != nil {
		_ = g.cli.Close()
	}
	g.etcd.remove()
}

// actions are what the page has buttons for.
func (g *liveGame) actions() page.Actions {
	all := func(do func() error) func(string) error {
		return func(server string) error {
			if server != "" {
				return fmt.Errorf("that is not for one server, got %q", server)
			}
			return do()
		}
	}
	return page.Actions{
		"add-server": all(g.addServer),
		"add-player": all(g.addPlayer),
		"reconnect":  all(g.reconnect),
		"stop-etcd":  all(g.stopEtcd),
		"start-etcd": all(g.startEtcd),
		"drain":      g.drain,
		"kill":       g.kill,
		"restart":    g.restart,
	}
}

func (g *liveGame) etcdClient() (*clientv3.Client, error) {
	return newEtcdClient([]string{g.etcd.client.Host}, grpc.WithContextDialer(g.cables.dial))
}

func (g *liveGame) dial() (*grpc.ClientConn, error) { return dialBy(g.finder, g.service) }

// look makes calls without affinity, which go round: the sparks.
func (g *liveGame) look(client gamepb.GameClient) {
	pace := time.NewTicker(lookTime)
	defer pace.Stop()
	for g.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(g.ctx, time.Second)
		var sign signature
		_, err := client.Look(ctx, &gamepb.LookRequest{}, sign.options()...)
		cancel()
		g.called(err)
		if err == nil {
			g.answered(sign.id(), sign.addr())
			g.board.Server(sign.id(), func(s *page.Server) { s.Keyless++ })
		}
		select {
		case <-pace.C:
		case <-g.ctx.Done():
		}
	}
}

// called counts a call.
func (g *liveGame) called(err error) {
	if g.ctx.Err() == nil {
		g.board.Count(func(t *page.Totals) {
			if answered(err) {
				t.Calls++
			} else {
				t.Failed++
			}
		})
	}
}

// stopEtcd stops etcd for real: it answers nobody, until it is started again.
func (g *liveGame) stopEtcd() error {
	return g.switchEtcd(page.EtcdRunning, page.EtcdStopping, func() (page.EtcdState, error) {
		g.board.Note(page.Done, "etcd stops. What is known stays known: nobody should move.")
		stopped := make(chan struct{})
		go func() {
			g.etcd.stop()
			close(stopped)
		}()
		// It would wait for its clients to hang up. A crash does not.
		for pace := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-pace.C:
				g.cables.cut("")
			case <-stopped:
				pace.Stop()
				return page.EtcdStopped, nil
			}
		}
	})
}

func (g *liveGame) startEtcd() error {
	return g.switchEtcd(page.EtcdStopped, page.EtcdStarting, func() (page.EtcdState, error) {
		if err := g.etcd.start(); err != nil {
			return page.EtcdStopped, err
		}
		g.board.Note(page.Done, "etcd is back.")
		return page.EtcdRunning, nil
	})
}

// switchEtcd does what takes a while and then says what has become of etcd.
func (g *liveGame) switchEtcd(from, by page.EtcdState, do func() (page.EtcdState, error)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running != from {
		return fmt.Errorf("etcd is %s", g.running)
	}
	if g.ctx.Err() != nil {
		return errors.New("the game is over")
	}
	g.isEtcdLocked(by)
	g.wg.Go(func() {
		is, err := do()
		if err != nil {
			g.board.Note(page.Done, err.Error())
		}
		g.isEtcd(is)
	})
	return nil
}

func (g *liveGame) isEtcd(state page.EtcdState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.isEtcdLocked(state)
}

func (g *liveGame) isEtcdLocked(state page.EtcdState) {
	g.running = state
	g.board.Etcd(state)
}
