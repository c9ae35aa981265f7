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

	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/session"
)

// sessionStream is a stream of a session: it confirms where the session lives with its
// first answer, which the balancer would only learn at the stream's end, and it ends
// when the session moves away.
type sessionStream struct {
	grpc.ClientStream
	call     call
	route    *callctx.Route
	many     bool // the server sends more than one message
	answered atomic.Bool

	cancel context.CancelFunc
	noted  *session.Stream // nil if it does not end when the session moves
	end    func()
}

// open opens a stream of a session.
func (c *call) open(ctx context.Context, desc *grpc.StreamDesc, streamer func(context.Context) (grpc.ClientStream, error)) (grpc.ClientStream, error) {
	v := *callctx.From(ctx)
	if v.Route == nil {
		v.Route = new(callctx.Route)
		ctx = callctx.With(ctx, v)
	}
	ctx, cancel := context.WithCancel(ctx)
	cs, err := streamer(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &sessionStream{ClientStream: cs, call: *c, route: v.Route, many: desc.ServerStreams, cancel: cancel}
	s.end = cancel
	if hop := s.route.Last(); hop != nil && !c.keep {
		s.noted = c.binding.Stream(hop.Place, cancel)
		s.end = sync.OnceFunc(func() {
			cancel()
			s.noted.End()
		})
		// Streams may be left without a last RecvMsg.
		context.AfterFunc(ctx, s.end)
	}
	return s, nil
}

func (s *sessionStream) Header() (metadata.MD, error) {
	header, err := s.ClientStream.Header()
	if err == nil && header != nil {
		s.answer()
	}
	if err != nil {
		err = s.left(err)
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
	return s.ended(err)
}

func (s *sessionStream) SendMsg(m any) error {
	err := s.ClientStream.SendMsg(m)
	if err != nil {
		err = s.left(err)
	}
	return err
}

// answer confirms, once, that the session lives where the stream is.
func (s *sessionStream) answer() {
	if s.answered.Swap(true) {
		return
	}
	if hop := s.route.Last(); hop != nil {
		if st := s.call.binding.Load(); st != nil && st.Place == hop.Place {
			s.call.binding.Confirm(st, hop.Place)
		}
	}
	if st := s.call.binding.Load(); st == nil || st.Place != nil && st.Place.Bare {
		header, _ := s.ClientStream.Header() // is there by now
		s.call.learn(header, nil)
	}
}

// ended takes in how the stream ended: err is its status, nil after the one message of a
// server that sends no more.
func (s *sessionStream) ended(err error) error {
	defer s.end()
	b := s.call.binding
	header, _ := s.ClientStream.Header()
	s.call.learn(header, s.Trailer())
	if err == nil || err == io.EOF {
		return err
	}
	if id, ok := MovedTo(err); ok {
		switch hop := s.route.Last(); {
		case id != "":
			b.Send(id)
		case hop != nil:
			b.Leave(hop.Place, ReasonDrained)
		}
	}
	if status.Code(err) == codes.Canceled {
		err = s.left(err) // a status that the server had sent says something else
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
// where it goes. Generated code sends it before it hands the stream out.
type lateStream struct {
	grpc.ClientStream // nil until then

	ctx  context.Context
	open func(req any) (grpc.ClientStream, error)

	mu  sync.Mutex // held while it is opened
	err error
}

func (s *lateStream) opened(req any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ClientStream == nil && s.err == nil {
		s.ClientStream, s.err = s.open(req)
	}
	return s.err
}

func (s *lateStream) SendMsg(m any) error {
	if err := s.opened(m); err != nil {
		return err
	}
	return s.ClientStream.SendMsg(m)
}

func (s *lateStream) RecvMsg(m any) error {
	if err := s.opened(nil); err != nil {
		return err
	}
	return s.ClientStream.RecvMsg(m)
}

func (s *lateStream) Header() (metadata.MD, error) {
	if err := s.opened(nil); err != nil {
		return nil, err
	}
	return s.ClientStream.Header()
}

func (s *lateStream) CloseSend() error {
	if err := s.opened(nil); err != nil {
		return err
	}
	return s.ClientStream.CloseSend()
}

func (s *lateStream) Trailer() metadata.MD {
	if s.opened(nil) != nil {
		return nil
	}
	return s.ClientStream.Trailer()
}

// Context does not open the stream: it may be asked for before the first message.
func (s *lateStream) Context() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ClientStream == nil {
		return s.ctx
	}
	return s.ClientStream.Context()
}
