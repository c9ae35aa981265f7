package main

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/examples/stateful-game/gamepb"
)

func TestWorld(t *testing.T) {
	ctx, w := t.Context(), newWorld()
	code := func(_ any, err error) codes.Code { return status.Code(err) }

	assert.Equal(t, codes.NotFound, code(w.Move(ctx, &gamepb.Step{Player: "ada"})))
	assert.Equal(t, codes.NotFound, code(w.Leave(ctx, &gamepb.LeaveRequest{Player: "ada"})))
	assert.Equal(t, codes.InvalidArgument, code(w.Join(ctx, &gamepb.JoinRequest{})))

	save := &gamepb.Status{Player: "someone else", X: 2, Y: 3, Score: 5}
	reply, err := w.Join(ctx, &gamepb.JoinRequest{Player: "ada", Save: save})
	require.NoError(t, err)
	assert.False(t, reply.GetKnown())
	for _, d := range []gamepb.Direction{gamepb.Direction_STAY, gamepb.Direction_NORTH, gamepb.Direction_EAST, gamepb.Direction_EAST} {
		_, err := w.Move(ctx, &gamepb.Step{Player: "ada", Direction: d})
		require.NoError(t, err)
	}

	// A second Join finds what is there and believes no save.
	reply, err = w.Join(ctx, &gamepb.JoinRequest{Player: "ada", Save: save})
	require.NoError(t, err)
	assert.True(t, reply.GetKnown())
	assert.Equal(t, []any{"ada", int32(4), int32(4), int64(8)},
		[]any{reply.GetStatus().GetPlayer(), reply.GetStatus().GetX(), reply.GetStatus().GetY(), reply.GetStatus().GetScore()})

	// A world that is about to end keeps who is there and takes nobody.
	w.leave()
	w.leave()
	assert.Equal(t, codes.Unavailable, code(w.Join(ctx, &gamepb.JoinRequest{Player: "bo"})))
	assert.Equal(t, codes.OK, code(w.Join(ctx, &gamepb.JoinRequest{Player: "ada"})))
	assert.Equal(t, codes.OK, code(w.Move(ctx, &gamepb.Step{Player: "ada"})))
	st, err := w.Leave(ctx, &gamepb.LeaveRequest{Player: "ada"})
	require.NoError(t, err)
	assert.EqualValues(t, 8, st.GetScore())
	there, err := w.Look(ctx, &gamepb.LookRequest{})
	require.NoError(t, err)
	assert.Empty(t, there.GetPlayers())
}

// slowSeat is a stream whose player goes on stepping, and hears nothing until it may.
type slowSeat struct {
	gamepb.Game_PlayServer
	ctx    context.Context
	player string
	hears  chan struct{}
}

func (s *slowSeat) Context() context.Context { return s.ctx }

func (s *slowSeat) Recv() (*gamepb.Step, error) { return &gamepb.Step{Player: s.player}, nil }

func (s *slowSeat) Send(*gamepb.Event) error { <-s.hears; return nil }

func TestASeatEndsWithItsPlayerWhateverIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		_, err := w.Join(t.Context(), &gamepb.JoinRequest{Player: "ada"})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		seat := &slowSeat{ctx: ctx, player: "ada", hears: make(chan struct{})}
		ended := make(chan error, 1)
		go func() { ended <- w.Play(seat) }()
		synctest.Wait() // one step is being answered, and the next one is there
		cancel()
		synctest.Wait()
		close(seat.hears)
		synctest.Wait()
		require.Len(t, ended, 1)
	})
}
