package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/homing-grpc/homing/examples/stateful-game/gamepb"
)

// seat is an open Play stream.
type seat struct {
	server string // that the stream is on
	stream gamepb.Game_PlayClient
	cancel context.CancelFunc

	answers chan *gamepb.Status
	leaving chan struct{} // closed when the server says that it is about to leave
	done    chan struct{} // closed when the stream has ended; err says how
	err     error
}

// takeSeat opens a stream for the player called name, to the server that ctx
// asks for, and waits for its first answer.
func takeSeat(ctx context.Context, client gamepb.GameClient, name string) (*seat, error) {
	// The stream outlives the call that opens it.
	ctx, cancel := context.WithCancel(ctx)
	stream, err := client.Play(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &seat{
		stream:  stream,
		cancel:  cancel,
		answers: make(chan *gamepb.Status),
		leaving: make(chan struct{}),
		done:    make(chan struct{}),
	}
	go s.read(ctx)
	if _, err := s.step(ctx, &gamepb.Step{Player: name}); err != nil {
		s.close()
		return nil, err
	}
	header, err := stream.Header() // it has come, for there was an answer
	if err != nil {
		s.close()
		return nil, err
	}
	s.server = signedBy(header)
	return s, nil
}

func (s *seat) read(ctx context.Context) {
	defer close(s.done)
	defer s.cancel() // or its context is kept for as long as the one that it is derived from
	for {
		event, err := s.stream.Recv()
		if err != nil {
			s.err = err
			return
		}
		if event.GetLeaving() != nil {
			close(s.leaving)
			continue
		}
		select {
		case s.answers <- event.GetStatus():
		case <-ctx.Done():
			s.err = ctx.Err()
			return
		}
	}
}

// step takes one step and waits for its answer.
func (s *seat) step(ctx context.Context, step *gamepb.Step) (*gamepb.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := s.stream.Send(step); err != nil && !errors.Is(err, io.EOF) { // EOF: why, says Recv
		return nil, err
	}
	select {
	case st := <-s.answers:
		return st, nil
	case <-s.done:
		return nil, s.err
	case <-ctx.Done():
		return nil, fmt.Errorf("no answer to a step over the stream: %w", ctx.Err())
	}
}

// over reports whether the stream has ended.
func (s *seat) over() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// close ends the stream and waits for its end: in order if the server goes along.
func (s *seat) close() {
	defer s.cancel()
	_ = s.stream.CloseSend()
	select {
	case <-s.done:
	case <-time.After(time.Second):
		s.cancel()
		<-s.done
	}
}
