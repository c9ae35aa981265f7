package stickybalancer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/affinity"
)

// What a session learns from attempts that end in this way or that. BytesReceived
// alone proves an answer, and BytesSent alone that something may have got there.

var (
	answered  = balancer.DoneInfo{BytesSent: true, BytesReceived: true}
	unsent    = balancer.DoneInfo{}
	unsettled = balancer.DoneInfo{BytesSent: true}
)

// attempt picks for ctx, and returns where that went and how to end it.
func (d *driver) attempt(ctx context.Context) (string, func(balancer.DoneInfo)) {
	d.t.Helper()
	r, err := d.current().Picker.Pick(balancer.PickInfo{Ctx: ctx, FullMethodName: "/s/m"})
	require.NoError(d.t, err)
	return r.SubConn.(*fakeConn).addr, r.Done
}

// driven is the driver's target.
var driven = resolver.Target{}.String()

func lives(s *affinity.Session) string { return s.ID(driven) }

func driveAB(t *testing.T, f func(t *testing.T, d *driver)) {
	t.Helper()
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		d.up("a", "b")
		f(t, d)
	})
}

func other(addr string) string { return map[string]string{"a": "b", "b": "a"}[addr] }

func TestAnAnswerConfirmsWhereASessionLives(t *testing.T) {
	driveAB(t, func(t *testing.T, d *driver) {
		s := affinity.NewSession("")
		addr, done := d.attempt(s.Context(bg))
		require.Empty(t, lives(s))
		done(answered)
		require.Equal(t, addr, lives(s))
		again, done := d.attempt(s.Context(bg))
		require.Equal(t, addr, again)
		require.Nil(t, done, "a confirmed session costs no Done")
	})
}

func TestAnAttemptThatWasNeverSentLeavesASessionNowhere(t *testing.T) {
	driveAB(t, func(t *testing.T, d *driver) {
		s := affinity.NewSession("")
		addr, done := d.attempt(s.Context(bg))
		done(unsent)
		next, done := d.attempt(s.Context(bg))
		require.Equal(t, other(addr), next, "round robin goes on")
		done(answered)
		require.Equal(t, next, lives(s))
	})
}

func TestAnAttemptThatMayHaveArrivedHoldsTheSession(t *testing.T) {
	driveAB(t, func(t *testing.T, d *driver) {
		s := affinity.NewSession("")
		addr, done := d.attempt(s.Context(bg))
		done(unsettled)
		require.Empty(t, lives(s))
		for range 4 {
			next, done := d.attempt(s.Context(bg))
			require.Equal(t, addr, next)
			done(unsent)
		}
	})
}

func TestOneOfManyAttemptsThatFailsClearsNothing(t *testing.T) {
	driveAB(t, func(t *testing.T, d *driver) {
		s := affinity.NewSession("")
		addr, first := d.attempt(s.Context(bg))
		var dones []func(balancer.DoneInfo)
		for range 99 {
			next, done := d.attempt(s.Context(bg))
			require.Equal(t, addr, next)
			dones = append(dones, done)
		}
		first(unsent)
		next, last := d.attempt(s.Context(bg))
		require.Equal(t, addr, next)
		for _, done := range dones {
			done(unsent)
		}
		last(answered)
		require.Equal(t, addr, lives(s))
	})
}

func TestALateEndUndoesNothing(t *testing.T) {
	driveAB(t, func(t *testing.T, d *driver) {
		s := affinity.NewSession("")
		addr, late := d.attempt(s.Context(bg))
		s.Forget(driven)
		next, done := d.attempt(s.Context(bg))
		require.Equal(t, other(addr), next)
		late(answered)
		require.Empty(t, lives(s), "of a session that was forgotten")
		done(answered)
		require.Equal(t, next, lives(s))

		s.Forget(driven)
		addr, late = d.attempt(s.Context(bg))
		s.Forget(driven)
		for next = ""; next != addr; next, done = d.attempt(s.Context(bg)) {
			s.Forget(driven)
		}
		late(unsent)
		again, _ := d.attempt(s.Context(bg))
		require.Equal(t, addr, again, "on the same server, in a later state")
		done(answered)
		require.Equal(t, addr, lives(s))
	})
}

func TestASessionThatNeverReachedItsNewHomeGoesBack(t *testing.T) {
	driveAB(t, func(t *testing.T, d *driver) {
		s := affinity.NewSession(keyAtHomeOn("a", "a", "b"))
		s.OnMove(func(m affinity.Move) { t.Error("moved:", m) })
		_, done := d.attempt(s.Context(bg))
		done(answered)
		d.down("a")
		expireWindow()
		addr, done := d.attempt(s.Context(bg))
		require.Equal(t, "b", addr)
		require.Equal(t, "a", lives(s))
		done(unsent)
		d.up("a")
		require.Equal(t, "a", d.server(s.Context(bg)))
	})
}

func TestASessionThatMayHaveReachedItsNewHomeStays(t *testing.T) {
	driveAB(t, func(t *testing.T, d *driver) {
		s := affinity.NewSession(keyAtHomeOn("a", "a", "b"))
		_, done := d.attempt(s.Context(bg))
		done(answered)
		d.down("a")
		expireWindow()
		_, done = d.attempt(s.Context(bg))
		done(unsettled)
		d.up("a")
		addr, done := d.attempt(s.Context(bg))
		require.Equal(t, "b", addr)
		done(answered)
		require.Equal(t, "b", lives(s))
	})
}

func TestTwoChannelsToOneTargetShareASession(t *testing.T) {
	s := affinity.NewSession("")
	var home string
	driveAB(t, func(t *testing.T, d *driver) {
		addr, done := d.attempt(s.Context(bg))
		done(answered)
		home = addr
	})
	// Its servers have other places inside the policy.
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("z"), ep("b"), ep("y"), ep("a"))
		d.up("z", "b", "y", "a")
		for range 4 {
			require.Equal(t, home, d.server(s.Context(bg)))
		}
	})
}

func expireWindow() {
	time.Sleep(window)
	synctest.Wait()
}

// TestNoSessionMovesNeedlessly plays random histories to sessions, with and without
// keys, that make calls after each event. A session whose server is READY stays, and
// every move is told of, once, with where from and where to.
func TestNoSessionMovesNeedlessly(t *testing.T) {
	for seed := range uint64(30) {
		drive(t, `{"absentGrace":"5s"}`, func(t *testing.T, d *driver) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			type told struct {
				session *affinity.Session
				at      string
				moves   []affinity.Move
			}
			var sessions []*told
			for i := range 12 {
				s := &told{session: affinity.NewSession("")}
				if i%2 == 0 {
					s.session = affinity.NewSession(fmt.Sprint("k", i))
				}
				s.session.OnMove(func(m affinity.Move) { s.moves = append(s.moves, m) })
				sessions = append(sessions, s)
			}
			all := []string{"a", "b", "c", "d", "e", "f"}
			listed, isDraining := map[string]bool{}, map[string]bool{}
			relist := func() {
				var eps []resolver.Endpoint
				for _, id := range all {
					switch {
					case listed[id] && isDraining[id]:
						eps = append(eps, ep(id, draining))
					case listed[id]:
						eps = append(eps, ep(id))
					}
				}
				d.list(eps...)
			}
			ready := func(id string) bool {
				c := d.open(id)
				return c != nil && c.state == connectivity.Ready
			}
			d.list() // or there is no picker
			for range 60 {
				id := all[rnd.IntN(len(all))]
				switch c := d.open(id); rnd.IntN(7) {
				case 0, 1:
					listed[id] = true
					relist()
				case 2:
					if listed[id] = false; rnd.IntN(2) == 0 {
						isDraining[id] = false
					}
					relist()
				case 3:
					isDraining[id] = !isDraining[id]
					relist()
				case 4:
					if c != nil && c.state == connectivity.Ready {
						d.down(id)
					}
				case 5:
					time.Sleep(time.Duration(rnd.IntN(4000)) * time.Millisecond)
					synctest.Wait()
				case 6:
					for _, id := range all {
						if c := d.open(id); c != nil && c.wanted && c.state != connectivity.Ready {
							d.up(id)
						}
					}
				}
				for _, s := range sessions {
					r, err := d.current().Picker.Pick(balancer.PickInfo{Ctx: s.session.Context(bg)})
					if err != nil {
						require.False(t, s.at != "" && ready(s.at), "seed %d: no pick of %s, which is READY: %v", seed, s.at, err)
						continue
					}
					to := r.SubConn.(*fakeConn).addr
					require.True(t, ready(to))
					before, from := len(s.moves), s.at
					if from != "" && from != to {
						require.False(t, ready(from), "seed %d: moved from %s, which is READY", seed, from)
						require.False(t, listed[to] && isDraining[to] && slices.ContainsFunc(all, func(id string) bool {
							return listed[id] && !isDraining[id] && ready(id)
						}), "seed %d: moved to %s, which drains", seed, to)
					}
					if r.Done != nil {
						r.Done(answered)
					}
					synctest.Wait()
					s.at = lives(s.session)
					require.Equal(t, to, s.at)
					if from != "" && from != to {
						require.Len(t, s.moves, before+1)
						require.Equal(t, []string{from, to}, []string{s.moves[before].From, s.moves[before].To})
					} else {
						require.Len(t, s.moves, before)
					}
				}
			}
		})
	}
}

func TestAFullHomePassesOnNewSessionsAndKeepsItsOwn(t *testing.T) {
	drive(t, `{"maxLoadFactor":1.01}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		d.up("a", "b")
		k := keyAtHomeOn("a", "a", "b")
		old := affinity.NewSession(k)
		addr, done := d.attempt(old.Context(bg))
		require.Equal(t, "a", addr)
		done(answered)
		for range 2 { // which stay in flight
			addr, _ := d.attempt(key(k))
			require.Equal(t, "a", addr)
		}
		var r affinity.Route
		fresh := affinity.NewSession(k)
		addr, done = d.attempt(affinity.Observe(fresh.Context(bg), &r))
		require.Equal(t, "b", addr)
		require.Equal(t, affinity.WhySpilled, r.Reason())
		done(answered)
		for range 5 {
			addr, _ = d.attempt(old.Context(bg))
			require.Equal(t, "a", addr, "a session is not evicted")
		}
		addr, _ = d.attempt(fresh.Context(bg))
		require.Equal(t, "b", addr, "where it began it stays")
	})
}
