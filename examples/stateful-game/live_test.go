package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/examples/stateful-game/gamepb"
	"github.com/homing-grpc/homing/examples/stateful-game/page"
)

// liveTest is a game without a page.
type liveTest struct {
	*liveGame
	t *testing.T
}

func playLive(t *testing.T) *liveTest {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	g, err := newLiveGame(t.Context(), "game")
	require.NoError(t, err)
	t.Cleanup(g.end)
	require.NoError(t, g.begin())
	l := &liveTest{g, t}
	l.until("all players are somewhere", func(f page.Frame) bool { return len(l.at("")) == 0 })
	return l
}

func (l *liveTest) frame() page.Frame {
	f, _, _ := l.board.Since(0)
	return f
}

func (l *liveTest) until(what string, is func(page.Frame) bool) {
	l.t.Helper()
	if !assert.Eventually(l.t, func() bool { return is(l.frame()) }, deadline, pollTime, what) {
		f := l.frame()
		l.t.Fatalf("etcd %s, totals %+v, servers %+v, players %+v, notes %+v", *f.Etcd, *f.Totals, f.Servers, f.Players, f.Notes)
	}
}

// at returns who is on a server.
func (l *liveTest) at(id string) (there []string) {
	for _, p := range l.frame().Players {
		if p.At == id {
			there = append(there, p.Name)
		}
	}
	return there
}

func (l *liveTest) state(id string) page.ServerState {
	for _, s := range l.frame().Servers {
		if s.ID == id {
			return s.State
		}
	}
	return ""
}

// served waits until everybody has been answered a few times more.
func (l *liveTest) served() {
	l.t.Helper()
	was := make(map[string]int64)
	for _, p := range l.frame().Players {
		was[p.Name] = p.Score
	}
	l.until("all players go on", func(f page.Frame) bool {
		for _, p := range f.Players {
			if p.Score < was[p.Name]+2 {
				return false
			}
		}
		return true
	})
}

func (l *liveTest) totals(needed, needless, told int) {
	l.t.Helper()
	l.until("the counters are as they should be", func(f page.Frame) bool {
		return *f.Totals == page.Totals{Needed: int64(needed), Needless: int64(needless), Told: int64(told), Calls: f.Totals.Calls, Failed: f.Totals.Failed}
	})
}

func TestAServerThatIsBackWithinTheWindowLosesNobody(t *testing.T) {
	l := playLive(t)
	there := l.at("game-2")
	require.NoError(t, l.kill("game-2"))
	require.NoError(t, l.restart("game-2"))
	l.totals(0, 0, len(there))
	l.served()
	assert.ElementsMatch(t, there, l.at("game-2"))
	l.totals(0, 0, len(there))
}

func TestAServerThatIsBackAfterTheWindowGetsNobodyBack(t *testing.T) {
	l := playLive(t)
	there := l.at("game-2")
	require.NoError(t, l.kill("game-2"))
	l.totals(len(there), 0, len(there))
	require.NoError(t, l.restart("game-2"))
	l.until("it is up", func(page.Frame) bool { return l.state("game-2") == page.Up })
	l.served()
	assert.Empty(t, l.at("game-2"))
	l.totals(len(there), 0, len(there))
}

func TestAServerKilledWhileEtcdIsStoppedMovesItsPlayersAlone(t *testing.T) {
	l := playLive(t)
	there := l.at("game-1")
	require.NoError(t, l.stopEtcd())
	l.until("etcd is stopped", func(f page.Frame) bool { return *f.Etcd == page.EtcdStopped })
	require.NoError(t, l.kill("game-1"))
	l.totals(len(there), 0, len(there))
	// One that starts now waits for etcd.
	require.NoError(t, l.addServer())
	l.served()
	assert.Equal(t, page.Starting, l.state("game-4"))
	require.NoError(t, l.startEtcd())
	l.until("it is up", func(page.Frame) bool { return l.state("game-4") == page.Up })
	l.served()
	l.totals(len(there), 0, len(there))
}

func TestAnOutageOfEtcdLongerThanALeaseMovesNobody(t *testing.T) {
	l := playLive(t)
	require.NoError(t, l.stopEtcd())
	l.until("etcd is stopped", func(f page.Frame) bool { return *f.Etcd == page.EtcdStopped })
	stopped := time.Now()
	l.until("all leases are over", func(page.Frame) bool { return time.Since(stopped) > leaseTTL+time.Second })
	require.NoError(t, l.startEtcd())
	l.until("etcd is running", func(f page.Frame) bool { return *f.Etcd == page.EtcdRunning })
	require.NoError(t, l.addServer())
	l.until("a newcomer is seen", func(page.Frame) bool { return l.state("game-4") == page.Up })
	l.served()
	l.totals(0, 0, 0)
}

func TestPlayersWithoutAServerWaitAndGoOn(t *testing.T) {
	l := playLive(t)
	for _, id := range []string{"game-1", "game-2", "game-3"} {
		require.NoError(t, l.kill(id))
	}
	l.until("calls fail", func(f page.Frame) bool { return f.Totals.Failed > 20 })
	require.NoError(t, l.addServer())
	l.until("all are on the one that there is", func(page.Frame) bool { return len(l.at("game-4")) == 9 })
	l.totals(9, 0, 9)
}

func TestAStartIsFollowedByTheNextUnderItsID(t *testing.T) {
	l := playLive(t)
	first := l.servers["game-2"]
	require.NoError(t, l.kill("game-2"))
	require.NoError(t, l.restart("game-2"))
	l.until("the next one answers", func(page.Frame) bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return !l.servers["game-2"].there.since.IsZero()
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	assert.False(t, first.there.excuses(time.Now().Add(2*time.Hour), time.Hour), "it was back within the hour")
}

// TestTwoWhoPressWhateverThereIsLoseNobody: all is well once they are done.
func TestTwoWhoPressWhateverThereIsLoseNobody(t *testing.T) {
	l := playLive(t)
	do := l.actions()
	names := slices.Sorted(maps.Keys(do))
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range 200 {
				_ = do[names[rand.IntN(len(names))]]([]string{"", "game-1", "game-2", "game-3", "game-4", "game-5"}[rand.IntN(6)])
				time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
			}
		})
	}
	wg.Wait()
	l.until("etcd is back", func(f page.Frame) bool {
		_ = l.startEtcd()
		return *f.Etcd == page.EtcdRunning
	})
	l.until("all servers are back", func(f page.Frame) bool {
		up := true
		for _, s := range f.Servers {
			up = up && s.State == page.Up
			if s.State == page.Left || s.State == page.Killed {
				_ = l.restart(s.ID)
			}
		}
		return up
	})
	l.served()

	// The servers are asked who is there. A move takes a moment, so more than once.
	conn, err := l.dial()
	require.NoError(t, err)
	defer conn.Close()
	var shown, held map[string][]string
	if !assert.Eventually(t, func() bool {
		shown, held = make(map[string][]string), make(map[string][]string)
		f := l.frame()
		for _, p := range f.Players {
			shown[p.Name] = []string{p.At}
		}
		for _, s := range f.Servers {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			world, err := gamepb.NewGameClient(conn).Look(affinity.Require(ctx, s.ID), &gamepb.LookRequest{})
			cancel()
			if err != nil {
				return false
			}
			for _, p := range world.GetPlayers() {
				held[p.GetPlayer()] = append(held[p.GetPlayer()], s.ID)
			}
		}
		return maps.EqualFunc(shown, held, slices.Equal)
	}, deadline, pollTime) {
		t.Errorf("the page shows %v, the servers hold %v", shown, held)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	assert.Len(t, shown, len(l.players))
}

func (l *liveTest) lastNote() string {
	notes := l.frame().Notes
	return notes[len(notes)-1].Text
}

func TestWhoeverTakesTheLastServerIsToldWhatComesOfIt(t *testing.T) {
	l := playLive(t)
	const alone = " No other server is up: calls fail until one is."
	require.NoError(t, l.kill("game-1"))
	assert.NotContains(t, l.lastNote(), alone)
	require.NoError(t, l.kill("game-2"))
	assert.NotContains(t, l.lastNote(), alone)
	require.NoError(t, l.drain("game-3"))
	assert.Contains(t, l.lastNote(), alone)
	require.NoError(t, l.kill("game-3"))
	assert.Contains(t, l.lastNote(), alone)
}

func TestAServerThatNobodyHearsOfIsNotSaidToJoin(t *testing.T) {
	l := playLive(t)
	require.NoError(t, l.addServer())
	assert.Equal(t, "game-4 joins. It takes nobody away from others: newcomers only.", l.lastNote())
	require.NoError(t, l.stopEtcd())
	require.NoError(t, l.addServer())
	assert.Equal(t, "game-5 starts. Nobody hears of it until etcd is back.", l.lastNote())
	require.NoError(t, l.restart("game-4"))
	assert.Equal(t, "game-4 restarts, on another port and with nothing in memory. Nobody hears of it until etcd is back.", l.lastNote())
}

func TestWhatCannotBeDoneIsAnErrorThatSaysWhy(t *testing.T) {
	l := playLive(t)
	require.NoError(t, l.kill("game-1"))
	do := l.actions()
	for _, tc := range []struct{ action, server, want string }{
		{"kill", "game-1", "game-1 is killed"},
		{"drain", "game-1", "game-1 is killed"},
		{"drain", "game-9", `there is no server "game-9"`},
		{"restart", "", `there is no server ""`},
		{"start-etcd", "", "etcd is running"},
		{"add-player", "game-1", `that is not for one server, got "game-1"`},
	} {
		assert.EqualError(t, do[tc.action](tc.server), tc.want, "%s %s", tc.action, tc.server)
	}
	for range maxServers - 3 {
		require.NoError(t, l.addServer())
	}
	assert.EqualError(t, l.addServer(), "8 servers are enough: restart one")
}

func TestAMoveIsNeededOnlyIfTheServerThatHeldThePlayerIsGone(t *testing.T) {
	const window, notice, never = 10 * noticeTime, noticeTime, time.Duration(-1)
	type next struct{ from, until time.Duration } // of answers
	for name, tc := range map[string]struct {
		why    string
		after  time.Duration // the move
		then   []next
		needed bool
	}{
		"one that is there":                      {after: time.Hour},
		"one that drains":                        {why: drained, needed: true},
		"one that has drained, and is back":      {why: drained, after: 2, then: []next{{1, never}}, needed: true},
		"a dead one, inside the window":          {why: killed, after: window - 1},
		"a dead one, after the window":           {why: killed, after: window, needed: true},
		"a dead one that was back in the window": {why: killed, after: time.Hour, then: []next{{window - notice, never}}},
		"a dead one that was back too late":      {why: killed, after: time.Hour, then: []next{{window - notice + 1, never}}, needed: true},
		"a dead one that answers nobody":         {why: killed, after: time.Hour, then: []next{{never, never}}, needed: true},
		"a dead one that was hardly back":        {why: killed, after: time.Hour, then: []next{{1, notice}}, needed: true},
		"a dead one that was back for a while":   {why: killed, after: time.Hour, then: []next{{1, 1 + notice}}},
		"a dead one that was back in the end":    {why: killed, after: time.Hour, then: []next{{1, 2}, {never, 3}, {4, never}}},
		"a dead one that came and went":          {why: killed, after: time.Hour, then: []next{{1, 2}, {never, 3}, {window, never}}, needed: true},
	} {
		t.Run(name, func(t *testing.T) {
			var p presence
			now := time.Now()
			if tc.why != "" {
				p.end(tc.why, now)
				p.end(killed, now.Add(1)) // what comes second does not count
			}
			last := &p
			for _, n := range tc.then {
				last.next = new(presence)
				last = last.next
				if n.from != never {
					last.answers(now.Add(n.from))
					last.answers(now.Add(time.Hour)) // nor does that
				}
				if n.until != never {
					last.end(killed, now.Add(n.until))
				}
			}
			assert.Equal(t, tc.needed, p.excuses(now.Add(tc.after), window))
		})
	}
}

func TestANeedlessMoveIsCalledThat(t *testing.T) {
	b := page.NewBoard()
	g := &liveGame{board: b, story: story{board: b}}
	g.moved("ada", &liveServer{id: "game-1"}, "game-2", 7, true)
	dead := &liveServer{id: "game-3"}
	dead.there.end(killed, time.Now())
	g.moved("bo", dead, "game-2", 8, true)
	f, _, _ := b.Since(0)
	assert.Equal(t, page.Totals{Needless: 2}, *f.Totals)
	require.Len(t, f.Notes, 2)
	assert.Equal(t, "game-1 is there. Needless moves: ada to game-2; 7 points are lost.", f.Notes[0].Text)
	assert.Equal(t, "game-3 was not dead for 1.5s. Needless moves: bo to game-2; 8 points are lost.", f.Notes[1].Text)
	assert.Equal(t, page.Needless, f.Notes[0].Kind)
}

func TestAnAnswerIsOfTheStartThatItCameFrom(t *testing.T) {
	var starts []*liveServer
	for range 2 {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer lis.Close()
		starts = append(starts, &liveServer{id: "game-1", lis: &wiredListener{Listener: lis}})
	}
	g := &liveGame{servers: map[string]*liveServer{"game-1": starts[1]}}
	assert.Nil(t, g.answered("game-1", starts[0].lis.Addr().String()), "it was killed meanwhile")
	assert.Zero(t, starts[1].there.since)
	assert.Same(t, starts[1], g.answered("game-1", starts[1].lis.Addr().String()))
	assert.NotZero(t, starts[1].there.since)
	assert.Nil(t, g.answered("game-2", starts[1].lis.Addr().String()), "there is none")
}

func TestWhatHappensToManyIsOneNote(t *testing.T) {
	b := page.NewBoard()
	s := story{board: b}
	s.tell(page.Needed, "gone:", "ada", "; %d points", 3)
	s.tell(page.Needed, "gone:", "bo", "; %d points", 4)
	s.tell(page.Needed, "gone:", "ada", "; %d points", 5)
	f, _, _ := b.Since(0)
	require.Len(t, f.Notes, 2)
	assert.Equal(t, "gone: ada, bo; 7 points", f.Notes[0].Text)
	assert.Equal(t, "gone: ada; 5 points", f.Notes[1].Text, "again is another story")
}

func TestThePageIsServedUntilTheProgramIsToldToEnd(t *testing.T) {
	url, _ := startLive(t, "127.0.0.1:0") // which checks that the program ends, and how
	resp, err := http.Get(url + "events")
	require.NoError(t, err)
	t.Cleanup(func() { resp.Body.Close() }) // after the end: a reader must not hold it up
	buf := make([]byte, 64)
	_, err = resp.Body.Read(buf)
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(string(buf), "retry:"), "%s", buf)
}

func TestAnAddressThatIsTakenIsOneLine(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer lis.Close()
	var stdout, stderr bytes.Buffer
	assert.Equal(t, exitUsage, run(t.Context(), []string{"-http", lis.Addr().String()}, &stdout, &stderr))
	assert.Equal(t, 1, strings.Count(stderr.String(), "\n"))
	assert.Contains(t, stderr.String(), "stateful-game: -http "+lis.Addr().String()+": ")
	assert.Empty(t, stdout.String())
}

func TestAPageForAllTheNetworkIsCalledThat(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1:0": false, "localhost:0": false, ":0": true} {
		t.Run(addr, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var stderr bytes.Buffer
			r, w := io.Pipe()
			go func() {
				defer w.Close()
				run(ctx, []string{"-http", addr}, w, &stderr)
			}()
			lines := bufio.NewScanner(r)
			require.True(t, lines.Scan())
			cancel() // or it would go on for ever
			said := lines.Scan() && strings.Contains(lines.Text(), "can see it and press its buttons")
			assert.Equal(t, want, said, lines.Text())
			for lines.Scan() {
			}
		})
	}
}
