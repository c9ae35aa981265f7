package faults

import (
	"context"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
)

// lateMessage is for how long after a move a message may still be sent on the old
// stream: that the stream is left, its sender learns from its next word.
const lateMessage = time.Second

// soakStream is a stream of a session. Each message is a call that changes state, and is
// answered by one.
type soakStream struct {
	load    *soakLoad
	channel *soakChannel
	slot    *atomic.Pointer[tracked]
	session *tracked                                                                                        // of the stream that is open
	stream  grpc.BidiStreamingClient[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse] // nil while it is not open
	cancel  context.CancelFunc
	route   *affinity.Route
	alive   time.Time // when it was last known to be on the wire
}

// talk sends a message and waits for the answer.
func (s *soakStream) talk() {
	var err error
	if now := s.slot.Load(); s.stream == nil || s.session != now {
		s.hangUp()
		s.session, s.route, s.alive = now, new(affinity.Route), time.Now()
		var ctx context.Context
		ctx, s.cancel = context.WithCancel(affinity.Observe(s.session.Context(bg), s.route))
		s.stream, err = s.channel.rpc().FullDuplexCall(ctx)
	}
	a := s.session.begin(lateMessage)
	var by worker
	if err == nil {
		by, err = s.exchange(a)
	}
	if s.load.over.Load() {
		return
	}
	s.load.tally.calls.Add(1)
	if err != nil {
		s.hangUp()
		s.ended(err)
		s.session.lose(a)
		return
	}
	s.alive = time.Now()
	s.session.answer(a, by)
}

// hangUp lets go of the stream.
func (s *soakStream) hangUp() {
	if s.cancel != nil {
		s.cancel()
	}
	s.stream, s.cancel = nil, nil
}

func (s *soakStream) exchange(a *attempt) (worker, error) {
	body := []byte(s.session.name + " " + strconv.Itoa(a.n))
	err := s.stream.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: body}})
	if err != nil && err != io.EOF {
		return worker{}, err
	}
	overdue := time.AfterFunc(soakTimeout, func() {
		s.load.book.violated("a message of session %s, %v, was not answered within %v", s.session.name, s.route, soakTimeout)
	})
	defer overdue.Stop()
	r, err := s.stream.Recv()
	if err != nil {
		return worker{}, err
	}
	id, pid, _ := strings.Cut(string(r.GetPayload().GetBody()), " ")
	return worker{id, pid}, nil
}

// ended judges the end of the stream, which shows when it is next used. A session that
// moves and a server that drains end streams in good order; else it is as with calls.
func (s *soakStream) ended(err error) {
	if _, ok := affinity.MovedTo(err); ok && status.Code(err) == codes.Aborted && s.load.book.away(s.route.ID(), s.channel.number, s.alive) {
		return
	}
	a := aim{what: "message of session " + s.session.name, session: s.session}
	s.load.failed(s.channel, a, s.route, s.alive, err)
}
