package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/homing-grpc/homing/examples/stateful-game/page"
)

// storyTime is how long a note waits for more of the same.
const storyTime = 5 * time.Second

// story tells what happens to players: what happens to many for one reason is one note.
type story struct {
	board *page.Board

	mu   sync.Mutex
	open map[string]*chapter // by their heads
}

type chapter struct {
	note   int
	last   time.Time
	who    []string
	points int64
}

// tell adds a player to the note that begins with head. tail may have a %d for the
// points of all.
func (s *story) tell(kind page.NoteKind, head, who, tail string, points int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.open[head]
	if !ok || time.Since(c.last) > storyTime || slices.Contains(c.who, who) {
		c = new(chapter)
		if s.open == nil {
			s.open = make(map[string]*chapter)
		}
		s.open[head] = c
	}
	c.last = time.Now()
	c.who = append(c.who, who)
	c.points += points
	if strings.Contains(tail, "%d") {
		tail = fmt.Sprintf(tail, c.points)
	}
	text := head + " " + strings.Join(c.who, ", ") + tail
	if c.note == 0 {
		c.note = s.board.Note(kind, text)
	} else {
		s.board.Amend(c.note, text)
	}
}
