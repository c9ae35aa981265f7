package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/examples/stateful-game/gamepb"
	"github.com/homing-grpc/homing/examples/stateful-game/page"
)

const (
	// turnTime is the time between two steps of a player.
	turnTime = 400 * time.Millisecond

	// waitTime is how long a call takes that the page shows as one that waits.
	waitTime = 300 * time.Millisecond
)

// livePlayer is a player whose session remembers where they are: unlike a player, who
// remembers an id. The fields are for the goroutine of live alone.
type livePlayer struct {
	game  *liveGame
	name  string
	again chan struct{} // to reconnect

	session *affinity.Session
	conn    *grpc.ClientConn // a channel of their own, as each device has it
	client  gamepb.GameClient
	seat    *seat // nil if there is none

	home   string         // the server that answered last
	held   *liveServer    // and which start of it
	joined bool           // that server knows the player
	bag    *gamepb.Status // the state, while no server holds it
	score  int64
	back   bool // has reconnected, and not been answered since
}

func (g *liveGame) addPlayer() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := len(g.players)
	if g.ctx.Err() != nil {
		return errors.New("the game is over")
	}
	if n >= maxPlayers {
		return fmt.Errorf("%d players are enough", maxPlayers)
	}
	name := names[n%len(names)]
	if n >= len(names) {
		name = fmt.Sprint(name, n/len(names)+1)
	}
	p := &livePlayer{game: g, name: name, session: affinity.NewSession("account-" + name), again: make(chan struct{}, 1)}
	if err := p.connect(); err != nil {
		return err
	}
	g.players = append(g.players, p)
	g.board.Player(name, func(is *page.Player) { is.State = page.Playing })
	g.wg.Go(p.live)
	return nil
}

// reconnect makes all players start again from nothing but what they have written down.
func (g *liveGame) reconnect() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.players {
		select {
		case p.again <- struct{}{}:
		default: // they are about to
		}
	}
	g.board.Note(page.Done, fmt.Sprintf("The devices of all %d players restart. What each has left is its session, as a line of text.", len(g.players)))
	return nil
}

// connect makes a channel.
func (p *livePlayer) connect() (err error) {
	if p.conn, err = p.game.dial(); err != nil {
		return err
	}
	p.client = gamepb.NewGameClient(p.conn)
	p.session.OnMove(p.game.told)
	return nil
}

// live plays until the game is over.
func (p *livePlayer) live() {
	ctx := p.game.ctx
	defer p.hangUp()
	pace := time.NewTicker(turnTime)
	defer pace.Stop()
	for n := 0; ; n++ {
		p.turn(ctx, walk(n))
		var leaving <-chan struct{}
		if p.seat != nil {
			leaving = p.seat.leaving
		}
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		case <-leaving:
			p.pack(ctx)
		case <-p.again:
			p.restart()
		}
	}
}

// turn is one step, and whatever must come before it.
func (p *livePlayer) turn(ctx context.Context, d gamepb.Direction) {
	if !p.joined && !p.join(ctx) {
		return
	}
	st, err := p.call(ctx, func(ctx context.Context, opts ...grpc.CallOption) (*gamepb.Status, error) {
		return p.client.Move(ctx, &gamepb.Step{Player: p.name, Direction: d}, opts...)
	})
	switch {
	case status.Code(err) == codes.NotFound:
		// The state is gone. Start again, where the answer came from.
		p.joined = false
		p.join(ctx)
	case err == nil:
		p.scores(st)
		p.sit(ctx)
	}
}

// join enters the world of the session's server, with the bag if there is one.
func (p *livePlayer) join(ctx context.Context) bool {
	st, err := p.call(ctx, func(ctx context.Context, opts ...grpc.CallOption) (*gamepb.Status, error) {
		reply, err := p.client.Join(ctx, &gamepb.JoinRequest{Player: p.name, Save: p.bag}, opts...)
		return reply.GetStatus(), err
	})
	if err != nil {
		return false
	}
	p.joined, p.bag = true, nil
	p.scores(st)
	return true
}

// pack leaves a server that is about to go, with all there is.
func (p *livePlayer) pack(ctx context.Context) {
	old := p.seat
	p.seat = nil
	defer old.close()
	st, err := p.call(ctx, func(ctx context.Context, opts ...grpc.CallOption) (*gamepb.Status, error) {
		return p.client.Leave(ctx, &gamepb.LeaveRequest{Player: p.name}, opts...)
	})
	if err != nil {
		return // the next turn finds out
	}
	p.bag, p.joined = st, false
	p.shows(page.Packing)
	// The server ends the seat in a moment (affinity.WithDrain), and that sends the
	// session elsewhere.
	select {
	case <-old.done:
	case <-time.After(2 * packTime):
	case <-ctx.Done():
	}
}

// sit takes a seat, unless there is one: who has one hears that the server leaves.
func (p *livePlayer) sit(ctx context.Context) {
	if p.seat != nil && !p.seat.over() {
		return
	}
	p.seat = nil
	s, err := takeSeat(p.session.Context(ctx), p.client, p.name)
	p.game.called(err)
	if err == nil {
		p.seat = s
	}
}

// restart is the player's device that does: all that is left is the session's text.
func (p *livePlayer) restart() {
	token, err := p.session.MarshalText()
	if err == nil {
		p.hangUp()
		p.session = new(affinity.Session)
		if err = p.session.UnmarshalText(token); err == nil {
			err = p.connect()
		}
	}
	if err != nil {
		p.game.board.Note(page.Done, fmt.Sprintf("%s cannot reconnect: %v", p.name, err))
		return
	}
	p.back = true
	p.game.board.Player(p.name, func(is *page.Player) { is.Reconnects++ })
}

func (p *livePlayer) hangUp() {
	_ = p.conn.Close()
	if p.seat != nil {
		p.seat.close()
		p.seat = nil
	}
}

// call makes a call of the session, and notes who answered.
func (p *livePlayer) call(ctx context.Context, do func(context.Context, ...grpc.CallOption) (*gamepb.Status, error)) (*gamepb.Status, error) {
	ctx, cancel := context.WithTimeout(p.session.Context(ctx), callTimeout)
	defer cancel()
	waits := time.AfterFunc(waitTime, func() {
		if ctx.Err() == nil {
			p.shows(page.Waiting)
		}
	})
	var sign signature
	st, err := do(ctx, sign.options()...)
	waits.Stop()
	p.game.called(err)
	if answered(err) {
		p.answeredBy(sign.id(), sign.addr(), err != nil)
	}
	return st, err
}

// answeredBy is the truth about where the player is: whoever answers holds the state,
// or has none and says so.
func (p *livePlayer) answeredBy(id, addr string, unknown bool) {
	g, old, points, held := p.game, p.home, p.score, p.held
	p.home = id
	p.held = cmp.Or(g.answered(id, addr), held)
	switch {
	case held == nil:
		g.story.tell(page.Came, "Newcomers:", p.name+" on "+id, ".", 0)
	case old != id:
		g.moved(p.name, held, id, points, unknown)
	case unknown:
		g.story.tell(page.Lost, fmt.Sprintf("%s has lost its memory. Its players stay and start again:", id), p.name, "; %d points are lost.", points)
	case p.back:
		g.story.tell(page.Came, "Reconnected, to where they were:", p.name, ".", 0)
	}
	p.back = false
	if unknown {
		p.score = 0
	}
	g.board.Player(p.name, func(is *page.Player) {
		is.At, is.Born, is.State, is.Score = id, cmp.Or(is.Born, id), page.Playing, p.score
	})
}

func (p *livePlayer) scores(st *gamepb.Status) {
	p.score = st.GetScore()
	p.game.board.Player(p.name, func(is *page.Player) { is.Score = p.score })
}

func (p *livePlayer) shows(state page.PlayerState) {
	p.game.board.Player(p.name, func(is *page.Player) { is.State = state })
}

// answered reports whether a server had the call. That it does not know the player is
// an answer, too.
func answered(err error) bool { return err == nil || status.Code(err) == codes.NotFound }

// moved judges a player who is answered by another server than the one that held them.
func (g *liveGame) moved(player string, held *liveServer, to string, points int64, lost bool) {
	g.mu.Lock()
	from, why, needed := held.id, held.there.why, held.there.excuses(time.Now(), reconnectWindow)
	g.mu.Unlock()
	g.board.Count(func(t *page.Totals) {
		if needed {
			t.Needed++
		} else {
			t.Needless++
		}
	})
	tail := "; %d points go along."
	if lost {
		tail = "; %d points are lost."
	}
	kind, head := page.Needed, fmt.Sprintf("%s was %s. Needed moves:", from, why)
	switch {
	case why == "":
		kind, head = page.Needless, fmt.Sprintf("%s is there. Needless moves:", from)
	case !needed:
		kind, head = page.Needless, fmt.Sprintf("%s was not dead for %v. Needless moves:", from, reconnectWindow)
	case lost && why == drained:
		kind, head = page.Lost, fmt.Sprintf("%s was drained, and not everything was taken along. Needed moves:", from)
	}
	g.story.tell(kind, head, player+" to "+to, tail, points)
}

// told is Session.OnMove's.
func (g *liveGame) told(affinity.Move) {
	g.board.Count(func(t *page.Totals) { t.Told++ })
}
