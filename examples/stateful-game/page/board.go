package page

import (
	"slices"
	"sync"
	"time"
)

// Board is what the page shows. It remembers at which of its changes each thing was
// last changed, so that a reader who comes back gets what has changed since and no
// more, however slow it is. A Board is safe for concurrent use.
type Board struct {
	mu      sync.Mutex
	now     int64         // how many changes there were
	changed chan struct{} // closed at the next one
	etcd    entry[EtcdState]
	totals  entry[Totals]
	servers []*entry[Server]
	players []*entry[Player]
	notes   []*entry[Note]
	noted   int // notes that there have ever been
}

// entry is a thing and the change at which it became what it is.
type entry[T comparable] struct {
	is    T
	since int64
}

// Server is an island.
type Server struct {
	ID      string      `json:"id"`
	Addr    string      `json:"addr"`
	State   ServerState `json:"state"`
	Keyless int64       `json:"keyless"` // calls without affinity that it has answered
}

// ServerState is what becomes of a server.
type ServerState string

const (
	Starting ServerState = "starting" // and not in etcd yet
	Up       ServerState = "up"
	Draining ServerState = "draining"
	Left     ServerState = "left" // in good order
	Killed   ServerState = "killed"
)

// Player is a dot.
type Player struct {
	Name       string      `json:"name"`
	At         string      `json:"at"`   // the server that answered last
	Born       string      `json:"born"` // the one that answered first
	State      PlayerState `json:"state"`
	Score      int64       `json:"score"`
	Reconnects int         `json:"reconnects"`
}

// PlayerState is what a player is about.
type PlayerState string

const (
	Playing PlayerState = "playing"
	Waiting PlayerState = "waiting" // for an answer, and not just for a moment
	Packing PlayerState = "packing" // to leave a server that drains
)

// EtcdState is what becomes of etcd.
type EtcdState string

const (
	EtcdRunning  EtcdState = "running"
	EtcdStopping EtcdState = "stopping"
	EtcdStopped  EtcdState = "stopped"
	EtcdStarting EtcdState = "starting"
)

// Totals are the counters.
type Totals struct {
	Needed   int64 `json:"needed"`   // moves from a server that was gone
	Needless int64 `json:"needless"` // moves from one that was there
	Told     int64 `json:"told"`     // calls of OnMove
	Calls    int64 `json:"calls"`    // answered
	Failed   int64 `json:"failed"`
}

// Note is a line of the timeline.
type Note struct {
	N    int      `json:"n"`
	Time int64    `json:"time"` // in milliseconds since 1970
	Kind NoteKind `json:"kind"`
	Text string   `json:"text"`
}

// NoteKind is what a note is about.
type NoteKind string

const (
	Done     NoteKind = "done"     // somebody pressed a button, or the game did
	Came     NoteKind = "came"     // a player is there, or there again
	Needed   NoteKind = "needed"   // moves
	Needless NoteKind = "needless" // moves that should not have been
	Lost     NoteKind = "lost"     // state, without a move
)

// maxNotes is how many notes are kept.
const maxNotes = 100

// NewBoard returns an empty board.
func NewBoard() *Board {
	return &Board{changed: make(chan struct{})}
}

// Server changes the server with this id, which is added if it is not there.
func (b *Board) Server(id string, change func(*Server)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.servers, func(e *entry[Server]) bool { return e.is.ID == id })
	if i < 0 {
		i = len(b.servers)
		b.servers = append(b.servers, &entry[Server]{is: Server{ID: id}})
	}
	edit(b, b.servers[i], change)
}

// Player changes the player of this name, who is added if not there.
func (b *Board) Player(name string, change func(*Player)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.players, func(e *entry[Player]) bool { return e.is.Name == name })
	if i < 0 {
		i = len(b.players)
		b.players = append(b.players, &entry[Player]{is: Player{Name: name}})
	}
	edit(b, b.players[i], change)
}

// Etcd says what becomes of etcd.
func (b *Board) Etcd(state EtcdState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	edit(b, &b.etcd, func(s *EtcdState) { *s = state })
}

// Count changes the counters.
func (b *Board) Count(change func(*Totals)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	edit(b, &b.totals, change)
}

// Note adds a line to the timeline, and returns its number for Amend.
func (b *Board) Note(kind NoteKind, text string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noted++
	e := new(entry[Note])
	b.notes = append(b.notes, e)
	if len(b.notes) > maxNotes {
		b.notes = slices.Delete(b.notes, 0, 1)
	}
	edit(b, e, func(n *Note) { *n = Note{N: b.noted, Time: time.Now().UnixMilli(), Kind: kind, Text: text} })
	return b.noted
}

// Amend changes the text of a note, if it is still there.
func (b *Board) Amend(n int, text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.notes {
		if e.is.N == n {
			edit(b, e, func(n *Note) { n.Text = text })
		}
	}
}

// edit is for those who hold b.mu.
func edit[T comparable](b *Board, e *entry[T], change func(*T)) {
	was := e.is
	change(&e.is)
	if e.is == was && e.since > 0 {
		return
	}
	b.now++
	e.since = b.now
	close(b.changed)
	b.changed = make(chan struct{})
}

// Frame is all that has changed on a board since some change.
type Frame struct {
	Whole   bool       `json:"whole,omitempty"` // what is not in it is not there
	Etcd    *EtcdState `json:"etcd,omitempty"`
	Totals  *Totals    `json:"totals,omitempty"`
	Servers []Server   `json:"servers,omitempty"`
	Players []Player   `json:"players,omitempty"`
	Notes   []Note     `json:"notes,omitempty"`
}

// Since returns what has changed after the change that is called since, all there is
// if that is 0; the name of the last change; and a channel that the next one closes.
func (b *Board) Since(since int64) (f Frame, now int64, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f.Whole = since == 0
	if b.etcd.since > since {
		f.Etcd = new(b.etcd.is)
	}
	if b.totals.since > since || f.Whole {
		f.Totals = new(b.totals.is)
	}
	f.Servers = after(b.servers, since)
	f.Players = after(b.players, since)
	f.Notes = after(b.notes, since)
	return f, b.now, b.changed
}

func after[T comparable](entries []*entry[T], since int64) (those []T) {
	for _, e := range entries {
		if e.since > since {
			those = append(those, e.is)
		}
	}
	return those
}
