package affinity

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/homing-grpc/homing/internal/session"
)

// drain is the leaving of a server, for all of its streams.
type drain struct {
	begun context.Context // ends when the server begins to drain
	over  context.Context // ends after the grace
}

func newDrain(begun context.Context, grace time.Duration) *drain {
	over, cancel := context.WithCancel(context.Background())
	context.AfterFunc(begun, func() { time.AfterFunc(grace, cancel) })
	return &drain{begun, over}
}

type drainKey struct{}

// Draining returns a channel that is closed when the server begins to drain, for the
// handler of a stream to save its state and return; nil, which is never closed, if the
// server has no [WithDrain] or ctx is not that of a stream's handler.
func Draining(ctx context.Context) <-chan struct{} {
	d, _ := ctx.Value(drainKey{}).(*drain)
	if d == nil {
		return nil
	}
	return d.begun.Done()
}

// drainStream is a stream that leaves with its server.
type drainStream struct {
	grpc.ServerStream
	ctx   context.Context
	drain *drain
}

// serve runs the handler on a stream that leaves with the server.
func (d *drain) serve(ss grpc.ServerStream, handler func(grpc.ServerStream) error) error {
	if d.left() {
		return leaving()
	}
	ctx, cancel := context.WithCancel(context.WithValue(ss.Context(), drainKey{}, d))
	defer cancel()
	stop := context.AfterFunc(d.over, cancel)
	defer stop()
	err := handler(&drainStream{ss, ctx, d})
	if _, moved := MovedTo(err); moved && !session.PassedOn(err) || !d.left() {
		return err
	}
	return leaving()
}

func (d *drain) left() bool { return d.over.Err() != nil }

func leaving() error {
	return movedStatus(codes.Aborted, "", "the server is draining: open the stream again")
}

func (s *drainStream) Context() context.Context { return s.ctx }

func (s *drainStream) SendMsg(m any) error {
	if s.drain.left() {
		return leaving()
	}
	return s.ServerStream.SendMsg(m)
}

// RecvMsg does not wait for a message any longer than the grace. The one that is being
// read then is left alone: it ends with the stream, when the handler has returned.
func (s *drainStream) RecvMsg(m any) error {
	if s.drain.left() {
		return leaving()
	}
	got := make(chan error, 1)
	go func() { got <- s.ServerStream.RecvMsg(m) }()
	select {
	case err := <-got:
		return err
	case <-s.drain.over.Done():
	}
	select {
	case err := <-got: // it had come in time
		return err
	default:
		return leaving()
	}
}
