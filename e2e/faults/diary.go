package faults

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// diary is what a server remembers of the sessions of which it took calls, which may
// have changed their state.
type diary struct {
	mu      sync.Mutex
	entries map[string]entry
}

// entry is when the first and the last call of a session were taken.
type entry struct{ First, Last time.Time }

func (d *diary) note(session string, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.entries == nil {
		d.entries = make(map[string]entry)
	}
	e, ok := d.entries[session]
	if !ok {
		e.First = at
	}
	e.Last = at
	d.entries[session] = e
}

// StreamingOutputCall tells all of it.
func (s *gameServer) StreamingOutputCall(_ *testpb.StreamingOutputCallRequest, stream testpb.TestService_StreamingOutputCallServer) error {
	s.sessions.mu.Lock()
	text, err := json.Marshal(s.sessions.entries)
	s.sessions.mu.Unlock()
	if err != nil {
		return err
	}
	return stream.Send(&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: text}})
}

func (s *server) diary() (entries map[string]entry, err error) {
	conn, err := grpc.NewClient(s.listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	ctx, cancel := context.WithTimeout(bg, 5*time.Second)
	defer cancel()
	stream, err := testpb.NewTestServiceClient(conn).StreamingOutputCall(ctx, &testpb.StreamingOutputCallRequest{})
	if err != nil {
		return nil, err
	}
	m, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if _, err := stream.Recv(); err != io.EOF {
		return nil, err
	}
	return entries, json.Unmarshal(m.GetPayload().GetBody(), &entries)
}

// atWork is for handlers that began before a fence fell.
const atWork = 50 * time.Millisecond

// twice counts the sessions of which a server took calls after another had begun to.
func (w *World) twice() (n int, err error) {
	times := make(map[string][]entry)
	for _, s := range w.servers {
		entries, err := s.diary()
		if err != nil {
			return 0, err
		}
		for session, e := range entries {
			times[session] = append(times[session], e)
		}
	}
	for _, es := range times {
		if overlap(es) {
			n++
		}
	}
	return n, nil
}

func overlap(es []entry) bool {
	for i, a := range es {
		for _, b := range es[i+1:] {
			if a.Last.Sub(b.First) > atWork && b.Last.Sub(a.First) > atWork {
				return true
			}
		}
	}
	return false
}
