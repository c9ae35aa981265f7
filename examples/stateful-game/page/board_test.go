package page

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestTheFirstFrameIsAllThereIs(t *testing.T) {
	b := NewBoard()
	b.Etcd(EtcdRunning)
	b.Server("game-1", func(s *Server) { s.State = Up })
	b.Player("ada", func(p *Player) { p.At = "game-1" })
	b.Note(Done, "it begins")
	f, _, _ := b.Since(0)
	assert.True(t, f.Whole)
	assert.Equal(t, EtcdRunning, *f.Etcd)
	assert.Equal(t, Totals{}, *f.Totals)
	assert.Equal(t, []Server{{ID: "game-1", State: Up}}, f.Servers)
	assert.Equal(t, []Player{{Name: "ada", At: "game-1"}}, f.Players)
	assert.Equal(t, "it begins", f.Notes[0].Text)
}

func TestALaterFrameIsWhatHasChanged(t *testing.T) {
	b := NewBoard()
	b.Server("game-1", func(s *Server) { s.State = Up })
	b.Server("game-2", func(s *Server) { s.State = Up })
	_, now, _ := b.Since(0)
	for range 1000 {
		b.Server("game-2", func(s *Server) { s.Keyless++ })
	}
	b.Count(func(t *Totals) { t.Needed = 7 })
	f, _, _ := b.Since(now)
	assert.Equal(t, Frame{
		Servers: []Server{{ID: "game-2", State: Up, Keyless: 1000}},
		Totals:  &Totals{Needed: 7},
	}, f)
}

func TestAChangeThatChangesNothingWakesNobody(t *testing.T) {
	b := NewBoard()
	b.Player("ada", func(p *Player) { p.Score = 1 })
	_, now, changed := b.Since(0)
	b.Player("ada", func(p *Player) { p.Score = 1 })
	select {
	case <-changed:
		t.Error("woken")
	default:
	}
	f, _, _ := b.Since(now)
	assert.Equal(t, Frame{}, f)
	b.Player("ada", func(p *Player) { p.Score = 2 })
	<-changed
}

func TestANoteIsAmendedInItsPlace(t *testing.T) {
	b := NewBoard()
	n := b.Note(Needed, "ada moves")
	b.Note(Done, "etcd stops")
	_, now, _ := b.Since(0)
	b.Amend(n, "ada and bo move")
	f, _, _ := b.Since(now)
	assert.Len(t, f.Notes, 1)
	assert.Equal(t, n, f.Notes[0].N)
	assert.Equal(t, "ada and bo move", f.Notes[0].Text)
}

func TestOldNotesAreForgotten(t *testing.T) {
	b := NewBoard()
	first := b.Note(Done, "first")
	for range maxNotes {
		b.Note(Done, "more")
	}
	b.Amend(first, "nobody reads this")
	f, _, _ := b.Since(0)
	assert.Len(t, f.Notes, maxNotes)
	assert.Equal(t, first+1, f.Notes[0].N)
}
