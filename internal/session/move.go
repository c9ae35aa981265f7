package session

// Move is a session that left a server's state behind.
type Move struct {
	Target string // the channel's canonical one
	From   string // the server's id
	To     string // likewise; its address if it has no metadata, and no answer has told its name yet
	Reason Reason
}

// moves calls a function with every move, in order, on one goroutine, which lives
// only while there is something to tell. It is guarded by the session's mu.
type moves struct {
	tell    func(Move)
	queue   []Move
	running bool
}

// OnMove makes f be told of each move from now on; nil, nobody.
func (s *Session) OnMove(f func(Move)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.moves == nil {
		if f == nil {
			return
		}
		s.moves = &moves{}
	}
	s.moves.tell = f
}

func (s *Session) tellLocked(m Move) {
	q := s.moves
	if q == nil || q.tell == nil {
		return
	}
	q.queue = append(q.queue, m)
	if !q.running {
		q.running = true
		go s.tellAll()
	}
}

func (s *Session) tellAll() {
	for {
		s.mu.Lock()
		q := s.moves
		if len(q.queue) == 0 {
			q.running, q.queue = false, nil
			s.mu.Unlock()
			return
		}
		m, tell := q.queue[0], q.tell
		q.queue = q.queue[1:]
		s.mu.Unlock()
		if tell != nil {
			tell(m)
		}
	}
}
