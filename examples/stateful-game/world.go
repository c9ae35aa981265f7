package main

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/homing-grpc/homing/examples/stateful-game/gamepb"
)

// world is the part of the game that one server holds, and the game service
// itself. It is in memory alone: this is the state that makes it matter which
// server a call reaches.
type world struct {
	gamepb.UnimplementedGameServer

	leaving chan struct{} // closed by leave
	once    sync.Once

	mu      sync.Mutex
	players map[string]*gamepb.Status
}

func newWorld() *world {
	return &world{leaving: make(chan struct{}), players: make(map[string]*gamepb.Status)}
}

// leave makes the world tell all who have a seat to take their things and go,
// and refuse those who come. Everything else goes on as before.
func (w *world) leave() {
	w.once.Do(func() { close(w.leaving) })
}

// Join puts a player into the world, or finds them there.
func (w *world) Join(_ context.Context, req *gamepb.JoinRequest) (*gamepb.JoinReply, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if st, ok := w.players[req.GetPlayer()]; ok {
		return &gamepb.JoinReply{Status: clone(st), Known: true}, nil
	}
	select {
	case <-w.leaving:
		// The client may not have heard of the draining yet. This answer makes
		// gRPC ask once more (see serviceConfig), and by then it has.
		return nil, status.Error(codes.Unavailable, "this server is leaving")
	default:
	}
	if req.GetPlayer() == "" {
		return nil, status.Error(codes.InvalidArgument, "a player needs a name")
	}
	// A real game would not believe what a player says they have: it would keep
	// saves in a store, or sign them.
	st := &gamepb.Status{
		Player: req.GetPlayer(),
		X:      req.GetSave().GetX(),
		Y:      req.GetSave().GetY(),
		Score:  req.GetSave().GetScore(),
	}
	w.players[st.Player] = st
	return &gamepb.JoinReply{Status: clone(st)}, nil
}

// Move takes one step.
func (w *world) Move(_ context.Context, step *gamepb.Step) (*gamepb.Status, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	st, err := w.findLocked(step.GetPlayer())
	if err != nil {
		return nil, err
	}
	switch step.GetDirection() {
	case gamepb.Direction_NORTH:
		st.Y++
	case gamepb.Direction_EAST:
		st.X++
	case gamepb.Direction_SOUTH:
		st.Y--
	case gamepb.Direction_WEST:
		st.X--
	default:
		return clone(st), nil
	}
	st.Score++
	return clone(st), nil
}

// Leave takes a player out of the world and hands over what they have.
func (w *world) Leave(_ context.Context, req *gamepb.LeaveRequest) (*gamepb.Status, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	st, err := w.findLocked(req.GetPlayer())
	if err != nil {
		return nil, err
	}
	delete(w.players, st.Player)
	return st, nil
}

// Look tells who is in the world.
func (w *world) Look(context.Context, *gamepb.LookRequest) (*gamepb.World, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	reply := new(gamepb.World)
	for _, name := range slices.Sorted(maps.Keys(w.players)) {
		reply.Players = append(reply.Players, clone(w.players[name]))
	}
	return reply, nil
}

// Play answers steps until the player has enough. It holds the server: one that
// drains waits for the calls in flight, so whoever has a seat is told of it and
// has the time to leave in order.
func (w *world) Play(stream gamepb.Game_PlayServer) error {
	ctx := stream.Context()
	steps, ended := make(chan *gamepb.Step), make(chan error, 1)
	go func() {
		for {
			step, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case steps <- step:
			case <-ctx.Done():
				ended <- status.FromContextError(ctx.Err()).Err()
				return
			}
		}
	}()

	leaving := w.leaving
	for {
		var event gamepb.Event
		select {
		case step := <-steps:
			st, err := w.Move(ctx, step)
			if err != nil {
				return err
			}
			event.Event = &gamepb.Event_Status{Status: st}
		case <-leaving:
			leaving = nil // say it once
			event.Event = &gamepb.Event_Leaving{Leaving: &gamepb.Leaving{}}
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := stream.Send(&event); err != nil {
			return err
		}
	}
}

func (w *world) findLocked(player string) (*gamepb.Status, error) {
	if st, ok := w.players[player]; ok {
		return st, nil
	}
	return nil, status.Errorf(codes.NotFound, "%q is not in this world", player)
}

func clone(st *gamepb.Status) *gamepb.Status { return proto.CloneOf(st) }
