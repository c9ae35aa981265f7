package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/examples/stateful-game/gamepb"
)

// callTimeout bounds each call of a player. It is longer than reconnectWindow,
// so that a call outlasts the wait for a lost server.
const callTimeout = 5 * time.Second

// player is the client's side: a name, and the id of the server that holds what
// the player has. The id is all that it takes to come back, from this channel or
// any other. A player is not for concurrent use.
type player struct {
	name   string
	client gamepb.GameClient
	tally  *tally
	on     func(playerEvent) // is told what happens to the player

	home string         // the server that holds the state; "" before Join
	last *gamepb.Status // the state when it was last seen
	bag  *gamepb.Status // the state, while no server holds it
	seat *seat          // nil if there is none
}

// playerEvent is a turn in a player's life. All but came are moves.
type playerEvent struct {
	player   string
	kind     eventKind
	from, to string
	points   int64 // brought, left behind or found
	known    bool  // the server had the player already
}

type eventKind int

const (
	came    eventKind = iota // joined for the first time, or came back
	carried                  // left one server in order and took the state along
	lost                     // was sent to a server that had never heard of them
	drifted                  // another server answered, and had state too
)

// tally counts what players try. That a server does not know a player
// (NOT_FOUND) is an answer, not a failure.
type tally struct {
	attempted, failed atomic.Int64
	first             atomic.Pointer[string] // what failed first
}

func (t *tally) count(what string, err error) {
	t.attempted.Add(1)
	if err == nil || status.Code(err) == codes.NotFound {
		return
	}
	t.failed.Add(1)
	why := fmt.Sprintf("%s: %v", what, err)
	t.first.CompareAndSwap(nil, &why)
}

// signature is where a unary call leaves the signature of the server that
// answered.
type signature struct {
	header, trailer metadata.MD
	peer            peer.Peer
}

func (s *signature) options() []grpc.CallOption {
	return []grpc.CallOption{grpc.Header(&s.header), grpc.Trailer(&s.trailer), grpc.Peer(&s.peer)}
}

// id is in the header, or in the trailer of a call that failed early.
func (s *signature) id() string { return signedBy(s.header, s.trailer) }

// addr is where the answer came from.
func (s *signature) addr() string {
	if s.peer.Addr == nil {
		return ""
	}
	return s.peer.Addr.String()
}

func signedBy(mds ...metadata.MD) string {
	for _, md := range mds {
		if ids := md.Get(affinity.IDHeader); len(ids) > 0 {
			return ids[0]
		}
	}
	return ""
}

// join enters the world of whatever server comes next: ctx carries an id for one
// in particular.
func (p *player) join(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var sign signature
	reply, err := p.client.Join(ctx, &gamepb.JoinRequest{Player: p.name, Save: p.bag}, sign.options()...)
	p.tally.count("join of "+p.name, err)
	if err != nil {
		return err
	}
	event := playerEvent{player: p.name, kind: came, to: sign.id(), points: reply.GetStatus().GetScore(), known: reply.GetKnown()}
	if p.bag != nil {
		event.kind, event.from = carried, p.home
	}
	p.home, p.last, p.bag = event.to, reply.GetStatus(), nil
	p.on(event)
	return nil
}

// step is one turn: a unary call to the server that holds the state. Whatever
// happened to that server meanwhile comes out here.
func (p *player) step(ctx context.Context, d gamepb.Direction) error {
	if p.home == "" || p.bag != nil {
		if err := p.join(ctx); err != nil {
			return err
		}
	}
	if p.told() {
		if err := p.relocate(ctx); err != nil {
			return err
		}
	}
	st, err := p.call(ctx, "step", func(ctx context.Context, opts ...grpc.CallOption) (*gamepb.Status, error) {
		return p.client.Move(ctx, &gamepb.Step{Player: p.name, Direction: d}, opts...)
	})
	if err != nil {
		return err
	}
	if st != nil {
		p.last = st
	}
	return p.sit(ctx)
}

// relocate leaves a server that is about to go, with all there is, and joins
// another. Until then the calls go on to the old one: a draining server keeps
// what it has.
func (p *player) relocate(ctx context.Context) error {
	st, err := p.call(ctx, "leave", func(ctx context.Context, opts ...grpc.CallOption) (*gamepb.Status, error) {
		return p.client.Leave(ctx, &gamepb.LeaveRequest{Player: p.name}, opts...)
	})
	if err != nil || st == nil {
		return err
	}
	p.bag, p.last = st, st
	p.stand()
	return p.join(ctx)
}

// call makes a unary call to the player's server. When the answer is that the
// state is not there, the player starts again where the answer came from, and
// call returns neither status nor error.
func (p *player) call(ctx context.Context, what string, do func(context.Context, ...grpc.CallOption) (*gamepb.Status, error)) (*gamepb.Status, error) {
	cctx, cancel := context.WithTimeout(affinity.With(ctx, p.home), callTimeout)
	defer cancel()
	var sign signature
	st, err := do(cctx, sign.options()...)
	p.tally.count(what+" of "+p.name, err)
	old, now := p.home, sign.id()
	switch {
	case status.Code(err) == codes.NotFound:
		p.home = now
		p.stand()
		p.on(playerEvent{player: p.name, kind: lost, from: old, to: now, points: p.last.GetScore()})
		return nil, p.join(affinity.With(ctx, now))
	case err == nil && now != old:
		p.home = now
		p.on(playerEvent{player: p.name, kind: drifted, from: old, to: now, points: st.GetScore()})
	}
	return st, err
}

// sit takes a seat at the player's server, unless there is one that holds.
func (p *player) sit(ctx context.Context) error {
	if p.seat != nil && !p.seat.over() {
		return nil
	}
	s, err := takeSeat(affinity.With(ctx, p.home), p.client, p.name)
	p.tally.count("seat of "+p.name, err)
	if err != nil {
		return err
	}
	p.seat = s
	if s.server != p.home {
		return fmt.Errorf("the seat of %s is on %s, their state on %s", p.name, s.server, p.home)
	}
	return nil
}

// stand gives the seat up.
func (p *player) stand() {
	if p.seat != nil {
		p.seat.close()
		p.seat = nil
	}
}

// play is step over the stream.
func (p *player) play(ctx context.Context, d gamepb.Direction) error {
	if p.seat == nil || p.told() {
		return p.step(ctx, d)
	}
	st, err := p.seat.step(ctx, &gamepb.Step{Player: p.name, Direction: d})
	p.tally.count("play of "+p.name, err)
	if err != nil {
		return err
	}
	p.last = st
	return nil
}

// told reports whether the player's server has said that it is about to leave.
func (p *player) told() bool {
	if p.seat == nil {
		return false
	}
	select {
	case <-p.seat.leaving:
		return true
	default:
		return false
	}
}
