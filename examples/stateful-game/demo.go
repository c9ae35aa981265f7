package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/examples/stateful-game/gamepb"
)

// patience bounds each wait of the demo for something that must happen.
const patience = 10 * time.Second

// Why a server is gone.
const (
	drained = "drained"
	killed  = "killed"
)

// demo is a small world of servers and players, and the record of what happened.
type demo struct {
	ctx     context.Context
	etcd    []string
	service string
	started time.Time

	cli   *clientv3.Client // the players' side
	lobby *grpc.ClientConn // one channel for all players, as a gateway has it
	wires wires            // the connections of lobby
	tally tally
	wg    sync.WaitGroup // the servers

	// Those two belong to the goroutine that plays the scenes.
	servers map[string]*demoServer
	players []*player

	mu    sync.Mutex // guards what follows, for players who play at the same time
	out   io.Writer
	gone  map[string]string // servers that leave or have left, and why
	moves []move
	wrong []string // what should not have happened
}

// demoServer is a server of the demo. It has an etcd client of its own, so that
// it can fall silent alone.
type demoServer struct {
	id    string
	cli   *clientv3.Client
	lis   *wiredListener
	leave context.CancelFunc
	left  chan struct{} // closed when serve has returned
}

// runDemo plays the five scenes. It returns an error if anything moved or failed
// that should not have.
func runDemo(ctx context.Context, out io.Writer, etcd []string, service string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	d := &demo{
		ctx:     ctx,
		etcd:    etcd,
		service: service,
		out:     out,
		started: time.Now(),
		servers: make(map[string]*demoServer),
		gone:    make(map[string]string),
	}
	err := d.play()
	d.end()
	if ctx.Err() != nil {
		return fmt.Errorf("the demo was cut short: %w", context.Cause(ctx))
	}
	if err != nil {
		return err
	}
	d.printTable()
	if len(d.wrong) > 0 {
		return fmt.Errorf("not as it should be: %s", strings.Join(d.wrong, "; "))
	}
	return nil
}

func (d *demo) play() error {
	var err error
	if d.cli, err = connectEtcd(d.ctx, d.etcd); err != nil {
		return err
	}
	if d.lobby, err = dial(d.cli, d.service, grpc.WithContextDialer(d.wires.dial)); err != nil {
		return err
	}
	for _, scene := range []func() error{d.spread, d.cut, d.drain, d.kill, d.grow} {
		if err := scene(); err != nil {
			return err
		}
	}
	return nil
}

// spread: calls without affinity go round.
func (d *demo) spread() error {
	d.title("1. Three servers start and six players join: round robin")
	for _, id := range []string{"game-1", "game-2", "game-3"} {
		if err := d.start(id); err != nil {
			return err
		}
	}
	if err := d.await("game-1", "game-2", "game-3"); err != nil {
		return err
	}
	for _, name := range []string{"ada", "bo", "cleo", "dan", "eve", "finn"} {
		if err := d.add(name); err != nil {
			return err
		}
	}
	for id, names := range d.whereabouts() {
		if len(names) != 2 {
			d.mistake("%s got %d of 6 players", id, len(names))
		}
	}
	// From here on each player has something to lose.
	for i, p := range d.players {
		for n := range 3 + i {
			if err := p.play(d.ctx, walk(n)); err != nil {
				return err
			}
		}
		d.say("%s has walked a little: score %d", p.name, p.last.GetScore())
	}
	return d.check()
}

// cut: a connection is no home; the server is.
func (d *demo) cut() error {
	ada := d.players[0]
	home := ada.home
	d.title("2. Connections are cut: players come back to their server")
	before := d.scores()

	d.say("the connection from the players to %s is cut", home)
	if d.wires.cut(d.servers[home].lis.Addr().String()) == 0 {
		return fmt.Errorf("there was no connection to %s", home)
	}
	for _, p := range d.at(home) {
		// The seat was on that connection: the player notices.
		if err := wait(d.ctx, p.seat.done); err != nil {
			return fmt.Errorf("%s did not notice: %w", p.name, err)
		}
		d.say("%s lost the seat at %s", p.name, home)
		if err := p.step(d.ctx, gamepb.Direction_STAY); err != nil {
			return err
		}
		d.say("%s is back on %s: score %d", p.name, p.home, p.last.GetScore())
	}

	// The same from nothing but the id: another channel, which has never seen a
	// server, as after a restart of the player's device.
	d.say("%s's device restarts: a new channel, which knows only the id %s", ada.name, home)
	ada.stand()
	conn, err := dial(d.cli, d.service)
	if err != nil {
		return err
	}
	defer conn.Close()
	ada.client = gamepb.NewGameClient(conn)
	if err := ada.join(affinity.With(d.ctx, home)); err != nil {
		return err
	}
	ada.client = gamepb.NewGameClient(d.lobby)
	if err := ada.sit(d.ctx); err != nil {
		return err
	}
	if ada.home != home {
		d.mistake("%s came back to %s, not to %s", ada.name, ada.home, home)
	}

	if after := d.scores(); !maps.Equal(before, after) {
		d.mistake("scores were %v before the cut and %v after it", before, after)
	}
	return d.check()
}

// drain: a server leaves while everyone plays on.
func (d *demo) drain() error {
	leaver := d.other(d.players[0].home)
	d.title("3. " + leaver + " drains and leaves, while all play on")
	leavers, before := d.at(leaver), d.scores()

	attempted, failed := d.tally.attempted.Load(), d.tally.failed.Load()
	stop := d.traffic()
	d.leaves(leaver, drained)
	d.say("%s is told to leave", leaver)
	d.servers[leaver].leave()
	err := wait(d.ctx, d.servers[leaver].left)
	attempted, failed = d.tally.attempted.Load()-attempted, d.tally.failed.Load()-failed
	if err := errors.Join(err, stop()); err != nil {
		return err
	}
	d.say("%s has left. Calls meanwhile: %d made, %d failed", leaver, attempted, failed)

	for _, p := range leavers {
		if p.home == leaver || p.last.GetScore() < before[p.name] {
			d.mistake("%s is on %s with score %d, after %d on %s", p.name, p.home, p.last.GetScore(), before[p.name], leaver)
		}
	}
	return d.check()
}

// kill: what a dead server held is lost, and nothing else.
func (d *demo) kill() error {
	victim := d.other(d.players[0].home)
	d.title("4. " + victim + " is killed, without a goodbye")
	victims := d.at(victim)
	s := d.servers[victim]
	d.leaves(victim, killed)
	// First its etcd client, or it would sign off: to etcd it just falls silent.
	_ = s.cli.Close()
	s.lis.kill()
	d.say("%s is dead; calls to it wait %v for it to come back", victim, reconnectWindow)
	for _, p := range victims {
		if err := wait(d.ctx, p.seat.done); err != nil {
			return fmt.Errorf("%s did not notice: %w", p.name, err)
		}
	}
	for _, p := range victims {
		if err := p.step(d.ctx, gamepb.Direction_STAY); err != nil {
			return err
		}
		if p.home == victim || p.last.GetScore() != 0 {
			d.mistake("%s is on %s with score %d, after %s was killed", p.name, p.home, p.last.GetScore(), victim)
		}
	}
	for _, p := range d.players {
		if err := p.step(d.ctx, gamepb.Direction_NORTH); err != nil {
			return err
		}
	}
	return d.check()
}

// grow: a new server takes from nobody.
func (d *demo) grow() error {
	const id = "game-4"
	d.title("5. " + id + " joins, and takes new players only")
	settled := slices.Clone(d.players)
	d.mu.Lock()
	before := len(d.moves)
	d.mu.Unlock()
	stop := d.traffic()
	err := d.start(id)
	if err == nil {
		err = d.await(id)
	}
	for _, name := range []string{"gil", "hal", "ivy", "joy"} {
		if err == nil {
			err = d.add(name)
		}
	}
	if err := errors.Join(err, stop()); err != nil {
		return err
	}

	if n := len(d.whereabouts()[id]); n == 0 {
		d.mistake("%s got none of the new players", id)
	}
	for _, p := range settled {
		if p.home == id {
			d.mistake("%s moved to %s", p.name, id)
		}
	}
	d.mu.Lock()
	moves := len(d.moves) - before
	d.mu.Unlock()
	d.say("of the %d who were there, %d moved", len(settled), moves)
	return d.check()
}

// end lets everyone go home, whatever happened.
func (d *demo) end() {
	for _, p := range d.players {
		p.stand()
	}
	if d.lobby != nil {
		_ = d.lobby.Close()
	}
	for _, s := range d.servers {
		s.leave()
	}
	d.wg.Wait()
	if d.cli != nil {
		_ = d.cli.Close()
	}
}

// start starts a server.
func (d *demo) start(id string) error {
	cli, err := connectEtcd(d.ctx, d.etcd)
	if err != nil {
		return err
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		_ = cli.Close()
		return err
	}
	// It leaves in order even when the demo is interrupted.
	ctx, leave := context.WithCancel(context.WithoutCancel(d.ctx))
	s := &demoServer{id: id, cli: cli, lis: &wiredListener{Listener: lis}, leave: leave, left: make(chan struct{})}
	d.servers[id] = s
	d.wg.Go(func() {
		defer cli.Close()
		defer close(s.left)
		if err := serve(ctx, cli, d.service, id, s.lis); err != nil && d.why(id) != killed {
			d.mistake("%s did not leave in order: %v", id, err)
		}
	})
	d.say("%s starts on %s", id, lis.Addr())
	return nil
}

// await waits until calls without affinity reach all of ids.
func (d *demo) await(ids ...string) error {
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	client := gamepb.NewGameClient(d.lobby)
	for seen := make(map[string]bool); ; {
		var sign signature
		// A call without affinity waits for any server, not for all.
		opts := append(sign.options(), grpc.WaitForReady(true))
		if _, err := client.Look(ctx, &gamepb.LookRequest{}, opts...); err != nil {
			return fmt.Errorf("no calls reach all of %v: %w", ids, err)
		}
		seen[sign.id()] = true
		if !slices.ContainsFunc(ids, func(id string) bool { return !seen[id] }) {
			return nil
		}
	}
}

// add adds a player, who goes wherever it is their turn.
func (d *demo) add(name string) error {
	p := &player{name: name, client: gamepb.NewGameClient(d.lobby), tally: &d.tally, on: d.happened}
	d.players = append(d.players, p)
	if err := p.join(d.ctx); err != nil {
		return err
	}
	return p.sit(d.ctx)
}

// traffic makes all players play until stop is called. stop makes sure that each
// has had a few turns more, and returns what went wrong.
func (d *demo) traffic() (stop func() error) {
	var wg sync.WaitGroup
	stopping := make(chan struct{})
	errs := make(chan error, len(d.players))
	for _, p := range d.players {
		wg.Go(func() {
			pace := time.NewTicker(10 * time.Millisecond)
			defer pace.Stop()
			for n, more := 0, 10; more > 0; n++ {
				err := p.step(d.ctx, walk(n))
				if err == nil {
					err = p.play(d.ctx, walk(n+2)) // and back
				}
				if err != nil {
					errs <- fmt.Errorf("%s: %w", p.name, err)
					return
				}
				select {
				case <-stopping:
					more--
				default:
				}
				<-pace.C
			}
		})
	}
	return func() error {
		close(stopping)
		wg.Wait()
		close(errs)
		return <-errs
	}
}

// other returns the first server that is still there and is not id.
func (d *demo) other(id string) string {
	for _, other := range slices.Sorted(maps.Keys(d.servers)) {
		if d.why(other) == "" && other != id {
			return other
		}
	}
	return ""
}

// at returns who believes to be at server id.
func (d *demo) at(id string) []*player {
	return slices.DeleteFunc(slices.Clone(d.players), func(p *player) bool { return p.home != id })
}

func (d *demo) whereabouts() map[string][]string {
	where := make(map[string][]string)
	for _, p := range d.players {
		where[p.home] = append(where[p.home], p.name)
	}
	return where
}

func (d *demo) scores() map[string]int64 {
	scores := make(map[string]int64)
	for _, p := range d.players {
		scores[p.name] = p.last.GetScore()
	}
	return scores
}

// check asks each server who is there, and compares that with what the players
// believe.
func (d *demo) check() error {
	client := gamepb.NewGameClient(d.lobby)
	where := d.whereabouts()
	for _, id := range slices.Sorted(maps.Keys(d.servers)) {
		if d.why(id) != "" {
			continue
		}
		// Require: this server, or an error.
		ctx, cancel := context.WithTimeout(affinity.Require(d.ctx, id), callTimeout)
		world, err := client.Look(ctx, &gamepb.LookRequest{})
		cancel()
		if err != nil {
			return fmt.Errorf("asking %s who is there: %w", id, err)
		}
		var there []string
		for _, st := range world.GetPlayers() {
			there = append(there, fmt.Sprintf("%s %d", st.GetPlayer(), st.GetScore()))
		}
		d.say("on %s: %s", id, strings.Join(there, ", "))
		names := slices.Sorted(slices.Values(where[id]))
		if !slices.EqualFunc(world.GetPlayers(), names, func(st *gamepb.Status, name string) bool { return st.GetPlayer() == name }) {
			d.mistake("%s has %v, and those who believe to be there are %v", id, there, names)
		}
	}
	return nil
}

// leaves notes that a server is about to go: moves away from it are needed.
func (d *demo) leaves(id, why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gone[id] = why
}

// why returns why a server is gone, "" if it is not.
func (d *demo) why(id string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gone[id]
}

func wait(ctx context.Context, done <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
