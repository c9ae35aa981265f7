package session

import "sync/atomic"

// Stream is a stream that ends when its session moves away from its server.
type Stream struct {
	binding *Binding
	place   *Place
	cancel  func()
	to      atomic.Pointer[string]
}

// Stream notes that a stream of the session is open on p. cancel is called, under a
// lock, when the session has moved elsewhere. It must be left in the end.
func (b *Binding) Stream(p *Place, cancel func()) *Stream {
	st := &Stream{binding: b, place: p, cancel: cancel}
	b.session.mu.Lock()
	defer b.session.mu.Unlock()
	if b.streams == nil {
		b.streams = make(map[*Stream]struct{})
	}
	b.streams[st] = struct{}{}
	// It may have moved since the stream was sent on its way.
	if s := b.state.Load(); s != nil && s.Confirmed && !s.Place.Same(p) {
		st.leave(s.Place.Called())
	}
	return st
}

func (s *Stream) leave(to string) {
	if s.to.CompareAndSwap(nil, &to) {
		s.cancel()
	}
}

// Left returns where the session went, if it has left the stream behind.
func (s *Stream) Left() (to string, ok bool) {
	if p := s.to.Load(); p != nil {
		return *p, true
	}
	return "", false
}

// End forgets the stream.
func (s *Stream) End() {
	s.binding.session.mu.Lock()
	defer s.binding.session.mu.Unlock()
	delete(s.binding.streams, s)
	if len(s.binding.streams) == 0 {
		s.binding.streams = nil
	}
}
