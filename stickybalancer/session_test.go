package stickybalancer_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

// The rows of the decision table that speak of sessions, under fake time.

const worldTarget = "world:///game"

// moves are those that a session was told of.
type moves struct {
	mu   sync.Mutex
	list []affinity.Move
}

func watch(s *affinity.Session) *moves {
	m := &moves{}
	s.OnMove(func(move affinity.Move) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.list = append(m.list, move)
	})
	return m
}

// are requires that these were the moves, as "from to reason".
func (m *moves) are(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	got := []string{}
	for _, move := range m.list {
		require.Equal(t, worldTarget, move.Target)
		got = append(got, fmt.Sprint(move.From, " ", move.To, " ", move.Reason))
	}
	require.Equal(t, append([]string{}, want...), got)
}

// keyAt returns a key whose home is server.
func (w *world) keyAt(server string) string {
	w.t.Helper()
	for i := range 1000 {
		key := fmt.Sprint("key-", i)
		if got, err := w.call(affinity.WithKey(bg, key)); err == nil && got == server {
			return key
		}
	}
	w.t.Fatalf("no key is at home on %s", server)
	return ""
}

func TestASessionStaysWhereItsFirstCallWent(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b", "c")
		seen := map[string]int{}
		for range 30 {
			s := affinity.NewSession("")
			require.Empty(t, s.ID(worldTarget))
			first, err := w.call(s.Context(bg))
			require.NoError(t, err)
			require.Equal(t, first, s.ID(worldTarget))
			require.Empty(t, s.ID("world:///chat"), "an id means nothing to another service")
			for range 5 {
				w.reaches(first, s.Context(bg))
			}
			seen[first]++
		}
		require.Equal(t, map[string]int{"a": 10, "b": 10, "c": 10}, seen, "first calls are spread")
	})
}

func TestASessionWithAKeyBeginsAtTheHomeOfItsKey(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b", "c")
		for _, server := range []string{"a", "b", "c"} {
			s := affinity.NewSession(w.keyAt(server))
			w.reaches(server, s.Context(bg))
			require.Equal(t, server, s.ID(worldTarget))
		}
	})
}

func TestAServerThatJoinsTakesNoSession(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		sessions := map[*affinity.Session]string{}
		for i := range 40 {
			s := affinity.NewSession(fmt.Sprint("user-", i))
			watch(s)
			first, err := w.call(s.Context(bg))
			require.NoError(t, err)
			sessions[s] = first
		}
		w.start("c", "d", "e")
		w.list("a", "b", "c*100", "d", "e")
		for s, home := range sessions {
			w.reaches(home, s.Context(bg))
		}
	})
}

func TestADrainingServerKeepsItsSessionsAndGetsNoNewOnes(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		old := affinity.NewSession(w.keyAt("b"))
		w.reaches("b", old.Context(bg))
		w.list("a", "b!")
		w.reaches("b", old.Context(bg))
		for i := range 20 {
			w.reaches("a", affinity.NewSession(fmt.Sprint("new-", i)).Context(bg))
		}
	})
}

func TestASessionWaitsForItsServerInsideTheWindow(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		s := affinity.NewSession(w.keyAt("b"))
		m := watch(s)
		w.reaches("b", s.Context(bg))
		w.stop("b")
		done := w.async(s.Context(bg))
		time.Sleep(time.Second)
		w.start("b")
		server, _, err := done()
		require.NoError(t, err)
		require.Equal(t, "b", server)
		m.are(t)
	})
}

func TestASessionWhoseServerFailedMovesToTheHomeOfItsKeyAndStaysThere(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b", "c")
		key := w.keyAt("b")
		s := affinity.NewSession(key)
		m := watch(s)
		w.reaches("b", s.Context(bg))
		w.stop("b")
		start := time.Now()
		next, err := w.call(s.Context(bg))
		require.NoError(t, err)
		require.Equal(t, window, time.Since(start))
		w.reaches(next, affinity.WithKey(bg, key))
		require.Equal(t, next, s.ID(worldTarget))
		m.are(t, "b "+next+" failed")

		w.start("b")
		time.Sleep(time.Minute)
		w.reaches("b", affinity.WithKey(bg, key))
		w.reaches(next, s.Context(bg))
		m.are(t, "b "+next+" failed")
	})
}

func TestSessionsWithoutAKeyThatLoseOneServerMeetAgain(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b", "c", "d")
		var lost []*affinity.Session
		for range 40 {
			s := affinity.NewSession("")
			if first, err := w.call(s.Context(bg)); err == nil && first == "b" {
				lost = append(lost, s)
			}
		}
		w.stop("b")
		time.Sleep(window)
		next, err := w.call(affinity.With(bg, "b"))
		require.NoError(t, err)
		require.Len(t, lost, 10)
		for _, s := range lost {
			w.reaches(next, s.Context(bg))
		}
	})
}

func TestASessionIsToldThatItsServerIsGone(t *testing.T) {
	inWorld(t, stickybalancer.Config{AbsentGrace: -1}, func(t *testing.T, w *world) {
		w.up("a", "b")
		s := affinity.NewSession(w.keyAt("b"))
		m := watch(s)
		w.reaches("b", s.Context(bg))
		w.list("a")
		w.reachesAfter(window, "a", s.Context(bg))
		m.are(t, "b a gone")
	})
}

func TestASessionIsToldThatItsServerWasDrained(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		s, late := affinity.NewSession(w.keyAt("b")), affinity.NewSession(w.keyAt("b"))
		m, lm := watch(s), watch(late)
		w.reaches("b", s.Context(bg))
		w.reaches("b", late.Context(bg))
		w.list("a", "b!")
		w.reaches("b", s.Context(bg))
		m.are(t)
		w.list("a")
		w.reaches("a", s.Context(bg)) // at once: it said goodbye
		m.are(t, "b a drained")

		time.Sleep(20 * time.Minute)
		w.start("c")
		w.list("a", "c")
		_, err := w.call(late.Context(bg))
		require.NoError(t, err)
		lm.are(t, "b "+late.ID(worldTarget)+" drained")
	})
}

func TestASessionIsToldThatItsServerHasRestarted(t *testing.T) {
	for name, second := range map[string]string{"on its address": "b@x#9", "elsewhere": "b@y#9"} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
				w.start("a", "x")
				w.list("a#1", "b@x#5")
				s := affinity.NewSession("")
				m := watch(s)
				for s.ID(worldTarget) != "b" {
					s.Forget(worldTarget)
					_, err := w.call(s.Context(bg))
					require.NoError(t, err)
				}
				w.stop("x")
				time.Sleep(time.Second)
				addr := second[2:3]
				w.start(addr)
				w.list("a#1", second)
				server, err := w.call(s.Context(bg))
				require.NoError(t, err)
				require.Equal(t, addr, server)
				m.are(t, "b b restarted")
				w.reaches(addr, s.Context(bg))
				m.are(t, "b b restarted")
			})
		})
	}
}

func TestAMetadataChangeIsNoRestart(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("a", "b")
		w.list("a#1", "b#5")
		s := affinity.NewSession("")
		m := watch(s)
		home, err := w.call(s.Context(bg))
		require.NoError(t, err)
		w.list("a*3#1", "b*7#5")
		w.reaches(home, s.Context(bg))
		w.list("a", "b") // an etcd record of another kind, without incarnations
		w.reaches(home, s.Context(bg))
		m.are(t)
	})
}

func TestFirstCallsMadeAtOnceLandTogether(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b", "c")
		s := affinity.NewSession("")
		var wg sync.WaitGroup
		var mu sync.Mutex
		got := map[string]int{}
		for range 100 {
			wg.Go(func() {
				server, err := w.call(s.Context(bg))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					got[server]++
				}
			})
		}
		wg.Wait()
		require.Equal(t, map[string]int{s.ID(worldTarget): 100}, got)
	})
}

func TestAnIDWinsOverASessionAndTeachesItNothing(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		s := affinity.NewSession(w.keyAt("b"))
		w.reaches("a", affinity.With(s.Context(bg), "a"))
		require.Empty(t, s.ID(worldTarget))
		w.reaches("b", s.Context(bg))
		w.reaches("a", s.Context(affinity.Require(bg, "a")))
		require.Equal(t, "b", s.ID(worldTarget))
	})
}

func TestAForgottenSessionGoesWhereAFirstCallWould(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		s := affinity.NewSession(w.keyAt("b"))
		m := watch(s)
		w.reaches("b", s.Context(bg))
		w.list("a", "b!")
		s.Forget(worldTarget)
		require.Empty(t, s.ID(worldTarget))
		w.reaches("a", s.Context(bg))
		m.are(t)
	})
}

func TestASessionSurvivesTheClient(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("a", "b")
		w.list("a#1", "b#5")
		old := affinity.NewSession("")
		home, err := w.call(old.Context(bg))
		require.NoError(t, err)
		text, err := old.MarshalText()
		require.NoError(t, err)

		again, restarted := affinity.NewSession(""), affinity.NewSession("")
		require.NoError(t, again.UnmarshalText(text))
		require.NoError(t, restarted.UnmarshalText(text))
		m := watch(restarted)
		for range 4 {
			w.reaches(home, again.Context(bg))
		}
		w.list("a#7", "b#8")
		w.reaches(home, restarted.Context(bg))
		m.are(t, home+" "+home+" restarted")
	})
}

func TestASessionSurvivesAnIdleChannel(t *testing.T) {
	inWorldWith(t, stickybalancer.Config{}.ServiceConfig(), func(t *testing.T, w *world) {
		w.up("a", "b", "c")
		w.resolver.InitialState(stateOf("a", "b", "c"))
		s := affinity.NewSession("")
		home, err := w.call(s.Context(bg))
		require.NoError(t, err)
		for range 5 {
			time.Sleep(time.Hour)
			server, err := w.call(s.Context(bg))
			require.NoError(t, err)
			require.Equal(t, home, server)
		}
	}, grpc.WithIdleTimeout(time.Minute))
}

func TestObserveTellsWhereCallsWentAndWhy(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("x", "y")
		w.list("a@x", "b@y")
		observe := func(ctx context.Context) string {
			t.Helper()
			var r affinity.Route
			require.Equal(t, "nowhere yet", r.String())
			_, err := w.call(affinity.Observe(ctx, &r))
			require.NoError(t, err)
			require.Equal(t, 1, r.Attempts())
			return r.String()
		}
		require.Contains(t, []string{"round_robin a x", "round_robin b y"}, observe(bg))
		require.Equal(t, "id b y", observe(affinity.With(bg, "b")))
		key := w.keyAt("y")
		require.Equal(t, "home b y", observe(affinity.WithKey(bg, key)))
		s := affinity.NewSession(key)
		require.Equal(t, "home b y", observe(s.Context(bg)))
		require.Equal(t, "session b y", observe(s.Context(bg)))
		w.stop("y")
		require.Equal(t, "rehomed a x, waited", observe(s.Context(bg)))
		require.Equal(t, "session a x", observe(s.Context(bg)))
		require.Equal(t, "rehomed a x", observe(affinity.With(bg, "b")))
	})
}

func TestAllWhoObserveACallAreTold(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a")
		var first, second affinity.Route
		ctx := affinity.Observe(context.Background(), &first)
		ctx = affinity.Observe(ctx, &second)
		ctx = affinity.Observe(ctx, &first) // is told once
		w.reaches("a", affinity.With(ctx, "a"))
		for _, r := range []*affinity.Route{&first, &second} {
			require.Equal(t, "a", r.ID())
			require.Equal(t, 1, r.Attempts())
		}

		w.reaches("a", affinity.Observe(context.Background(), &second))
		require.Equal(t, 2, second.Attempts())
		require.Equal(t, 1, first.Attempts(), "of the next call it knows nothing")
	})
}
