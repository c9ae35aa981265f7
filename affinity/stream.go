package affinity

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/internal/session"
)

// sessionStream is a stream of a session: it confirms where the session lives with its
// first answer, which the balancer would only learn at the stream's end, and it ends
// when the session moves away.
type sessionStream struct {
	grpc.ClientStream
	call     call
	many     bool            // the server sends more than one message
	noted    *session.Stream // nil if it does not end when the session moves
	answered atomic.Bool
	named    atomic.Pointer[session.Place] // where it is, if the answer says more than the balancer
	ended    atomic.Bool                   // by a status that the session's move has not made
}

// open opens a stream of a session. end is an option of the call that is to be made.
func (c *call) open(desc *grpc.StreamDesc, keep bool, streamer func(ctx context.Context, end grpc.CallOption) (grpc.ClientStream, error)) (grpc.ClientStream, error) {
	c.trace()
	out, err := outgoing(c.ctx, c.name())
	if err != nil {
		return nil, err
	}
	s := &sessionStream{call: *c, many: desc.ServerStreams}
	ctx, cancel := context.WithCancel(out)
	end := func(error) { cancel() }
	if !keep {
		s.noted = c.binding.Stream(s.at, cancel)
		end = func(error) {
			cancel()
			s.noted.End()
		}
	}
	if s.ClientStream, err = streamer(ctx, grpc.OnFinish(end)); err != nil {
		end(err)
		return nil, err
	}
	if s.noted != nil {
		s.noted.Opened()
	}
	return s, nil
}

// at returns where the stream is, nil if that is not known.
func (s *sessionStream) at() *session.Place {
	if p := s.named.Load(); p != nil {
		return p
	}
	return s.call.at()
}

func (s *sessionStream) Header() (metadata.MD, error) {
	header, err := s.ClientStream.Header()
	if header != nil {
		s.answer()
	}
	return header, err
}

func (s *sessionStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err == nil {
		s.answer()
		if s.many {
			return nil
		}
	}
	return s.end(err)
}

// SendMsg cannot know what ended the stream, if RecvMsg has not said.
func (s *sessionStream) SendMsg(m any) error {
	err := s.ClientStream.SendMsg(m)
	if err == io.EOF && !s.ended.Load() {
		err = s.left(err)
	}
	return err
}

// answer confirms, once, that the session lives where the stream is.
func (s *sessionStream) answer() {
	if s.answered.Swap(true) {
		return
	}
	b, at := s.call.binding, s.call.at()
	if at != nil {
		if st := b.Load(); st != nil && st.Place != nil && st.Place.Same(at) {
			b.Confirm(st, at)
		}
		if !at.Bare() {
			return
		}
	}
	header, _ := s.ClientStream.Header() // is there by now
	if name := signer(header, nil); name != "" {
		s.named.Store(at.Named(name))
		b.Answered(s.call.was, at, name)
	}
}

// end takes in how the stream ended: err is its status, nil after the one message of a
// server that sends no more.
func (s *sessionStream) end(err error) error {
	if s.ended.Load() {
		return err
	}
	if status.Code(err) == codes.Canceled {
		// A status that the server had sent says something else.
		if left := s.left(err); left != err {
			return left
		}
	}
	s.ended.Store(true)
	c := &s.call
	header, _ := s.ClientStream.Header()
	if err == io.EOF {
		c.learn(s.at(), header, s.Trailer(), nil)
		return err
	}
	c.learn(s.at(), header, s.Trailer(), err)
	if _, ok := session.Fenced(err); ok {
		c.binding.Refused(c.was, s.at())
	} else if id, ok := MovedTo(err); ok && id != "" {
		c.binding.Send(c.was, s.at(), id)
	} else if at := c.at(); ok && (at == nil || at.Bare() || !session.PassedOn(err)) {
		c.binding.Leave(c.was, s.at(), ReasonDrained)
	}
	return err
}

// left returns err, or that the session has left the stream behind.
func (s *sessionStream) left(err error) error {
	if s.noted == nil {
		return err
	}
	if to, ok := s.noted.Left(); ok {
		return movedStatus(codes.Aborted, to, fmt.Sprintf("the session has moved to server %q", to))
	}
	return err
}

// lateStream is opened when its first message is sent, so that the message can say
// where it goes. Generated code sends it before it hands the stream out. What waits for
// an answer before that waits, as it would on a stream that is open.
type lateStream struct {
	ctx    context.Context
	open   func(req any) (grpc.ClientStream, error)
	once   sync.Once
	opened chan struct{} // closed when the following are set
	stream grpc.ClientStream
	err    error
}

// start opens the stream, if that has not been done.
func (s *lateStream) start(req any) error {
	s.once.Do(func() {
		defer close(s.opened)
		s.stream, s.err = s.open(req)
	})
	return s.err
}

// wait waits until the stream is opened.
func (s *lateStream) wait() error {
	select {
	case <-s.opened:
		return s.err
	default:
	}
	select {
	case <-s.opened:
		return s.err
	case <-s.ctx.Done():
		return status.FromContextError(s.ctx.Err()).Err()
	}
}

func (s *lateStream) SendMsg(m any) error {
	if err := s.start(m); err != nil {
		return err
	}
	return s.stream.SendMsg(m)
}

func (s *lateStream) CloseSend() error {
	if err := s.start(nil); err != nil {
		return err
	}
	return s.stream.CloseSend()
}

func (s *lateStream) RecvMsg(m any) error {
	if err := s.wait(); err != nil {
		return err
	}
	return s.stream.RecvMsg(m)
}

func (s *lateStream) Header() (metadata.MD, error) {
	if err := s.wait(); err != nil {
		return nil, err
	}
	return s.stream.Header()
}

func (s *lateStream) Trailer() metadata.MD {
	if s.isOpen() {
		return s.stream.Trailer()
	}
	return nil
}

func (s *lateStream) Context() context.Context {
	if s.isOpen() {
		return s.stream.Context()
	}
	return s.ctx
}

func (s *lateStream) isOpen() bool {
	select {
	case <-s.opened:
		return s.err == nil
	default:
		return false
	}
}
