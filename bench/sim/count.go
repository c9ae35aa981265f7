package sim

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc/balancer"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

// nowhere is where a call went that waits or fails.
const nowhere = -1

// places says where keys and sessions are, by server number.
type places struct{ keys, sessions []int32 }

func key(i int) string { return "player-" + strconv.Itoa(i) }

// look asks for the place of each key and of each session.
func (w *world) look() places {
	n := w.cfg.Keys
	if w.sessions == nil {
		w.sessions = make([]*affinity.Session, n)
		for i := range w.sessions {
			w.sessions[i] = affinity.NewSession(key(i))
		}
	}
	pickers := make([]balancer.Picker, len(w.clients))
	for i, c := range w.clients {
		pickers[i] = c.newest()
	}
	at := places{make([]int32, n), make([]int32, n)}
	bg := context.Background()
	for i := range n {
		p := pickers[i%len(pickers)]
		at.keys[i] = picked(p, affinity.WithKey(bg, key(i)))
		at.sessions[i] = picked(p, w.sessions[i].Context(bg))
	}
	return at
}

// picked is where a call goes that is made and answered at once.
func picked(p balancer.Picker, ctx context.Context) int32 {
	res, err := p.Pick(balancer.PickInfo{Ctx: ctx, FullMethodName: "/game/Move"})
	if err != nil {
		return nowhere
	}
	if res.Done != nil {
		res.Done(balancer.DoneInfo{BytesSent: true, BytesReceived: true})
	}
	return res.SubConn.(*conn).server.number
}

// strays asks one client, or all, for the home of each slot, and returns how many do not
// go where want says that they may.
func (w *world) strays(clients []*client, want func(slot uint32, at int32) bool) (n int) {
	for _, c := range clients {
		p := c.newest()
		for _, probe := range w.probes {
			if !want(probe.slot, picked(p, probe.ctx)) {
				n++
			}
		}
	}
	return n
}

// wake makes a call to each home on all clients, where those connect by the first call.
func (w *world) wake() {
	if w.cfg.Policy.Connect == stickybalancer.ConnectLazy {
		w.strays(w.clients, func(uint32, int32) bool { return true })
		pass(100 * time.Millisecond)
	}
}

// Moves is how many moved, how many had to, and how many of the two lists are not the
// same: who moved without need, or elsewhere, or did not move, or went nowhere.
type Moves struct{ Moved, Needed, Needless int }

func (m *Moves) note(before, now int32, needed, right bool) {
	if now != before {
		m.Moved++
	}
	if needed {
		m.Needed++
	}
	if (now != before && !needed) || !right {
		m.Needless++
	}
}

// keyMoves compares with the homes that plain rendezvous has.
func keyMoves(before, now places, homesBefore, homesNow []int32) (m Moves) {
	for i := range now.keys {
		slot := slotOf(key(i))
		m.note(before.keys[i], now.keys[i], homesBefore[slot] != homesNow[slot], now.keys[i] == homesNow[slot])
	}
	return m
}

// sessionMoves holds that a session moves if its server is gone, to the home of its key,
// and not otherwise.
func sessionMoves(before, now places, homesNow []int32, servers []*server) (m Moves) {
	for i := range now.sessions {
		old, at := before.sessions[i], now.sessions[i]
		gone := !servers[old].up
		m.note(old, at, gone, !gone || at == homesNow[slotOf(key(i))])
	}
	return m
}

// busiest is the load of the busiest of the servers that are up, over the mean.
func busiest(at []int32, servers []*server) float64 {
	load := make([]int, len(servers))
	for _, s := range at {
		if s != nowhere {
			load[s]++
		}
	}
	most, up := 0, 0
	for i, s := range servers {
		if s.up {
			most = max(most, load[i])
			up++
		}
	}
	return float64(most) * float64(up) / float64(len(at))
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func megabytes(n float64) string { return fmt.Sprintf("%.1f", n/1e6) }
