package session

import "sync/atomic"

// Stream is a stream that ends when its session moves away from its server.
type Stream struct {
	binding *Binding
	place   func() *Place
	cancel  func()
	to      atomic.Pointer[string]
}

// Stream notes a stream of the session, before it is opened. place returns where it is,
// nil if that is not known; it may change while the stream is retried. cancel is called
// when the session has moved elsewhere. Both are called under a lock. The stream must
// be ended.
func (b *Binding) Stream(place func() *Place, cancel func()) *Stream {
	st := &Stream{binding: b, place: place, cancel: cancel}
	b.session.mu.Lock()
	defer b.session.mu.Unlock()
	if b.streams == nil {
		b.streams = make(map[*Stream]struct{})
	}
	b.streams[st] = struct{}{}
	return st
}

// Opened says that the stream's place is known now: the session may have moved since the
// stream was sent there.
func (s *Stream) Opened() {
	b := s.binding
	b.session.mu.Lock()
	defer b.session.mu.Unlock()
	if now := b.state.Load(); now != nil && now.Confirmed {
		if _, noted := b.streams[s]; noted {
			s.check(now.Place)
		}
	}
}

// check leaves a stream that is not on p, where the session lives.
func (s *Stream) check(p *Place) {
	if at := s.place(); at == nil || at.isNow(p) {
		return
	}
	to := p.Called()
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

// End forgets the stream. It may be called more than once.
func (s *Stream) End() {
	b := s.binding
	b.session.mu.Lock()
	defer b.session.mu.Unlock()
	delete(b.streams, s)
	if len(b.streams) == 0 {
		b.streams = nil
	}
}
