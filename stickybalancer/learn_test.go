package stickybalancer

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/balancer"
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
