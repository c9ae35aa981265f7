package session

import (
	"testing"
	"testing/synctest"
	"time"
	"unique"

	"github.com/stretchr/testify/require"

	"github.com/homing-grpc/homing/internal/sealed"
)

// What a session makes of names that are sealed, and anew from time to time.

// sealedForms returns two forms of the name of server a, and one of b.
func sealedForms(t *testing.T) (a1, a2, b string) {
	t.Helper()
	ring, err := sealed.NewRing(make([]byte, 32))
	require.NoError(t, err)
	form := func(id string, hour int64) string { return ring.Seal(sealed.ID, id, "s", time.Unix(hour*3600, 0)) }
	return form("a", 1), form("a", 2), form("b", 1)
}

// renewed is a session at a whose name was sealed anew, and its state before that.
func renewed(t *testing.T) (s *Session, bd *Binding, was *State) {
	t.Helper()
	a1, a2, _ := sealedForms(t)
	s, bd = in((*Place)(nil).Named(a1))
	was = bd.Load()
	bd.Answered(was, nil, a2)
	require.Equal(t, a2, bd.Lives().Called(), "the old form will expire")
	return s, bd, was
}

func TestANameThatIsSealedAnewIsNoMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a1, a2, b1 := sealedForms(t)
		s, bd := in((*Place)(nil).Named(a1))
		moves := told(s)
		ended := false
		at := (*Place)(nil).Named(a1)
		st := bd.Stream(func() *Place { return at }, func() { ended = true })
		defer st.End()
		bd.Answered(bd.Load(), nil, a2)
		require.Empty(t, moves())
		require.False(t, ended, "its streams go on")
		require.Equal(t, a2, bd.Lives().Called())
		bd.Answered(bd.Load(), nil, b1)
		require.Equal(t, []string{a2 + " " + b1 + " moved"}, moves())
		require.True(t, ended)
	})
}

func TestAnAddressWhoseNameIsSealedAnewIsNoMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a1, a2, b1 := sealedForms(t)
		at := NewPlace("10.0.0.1:80", 0, 0)
		at.SetBare(true)
		s, bd := in(at.Named(a1))
		moves := told(s)
		bd.Answered(bd.Load(), at, a2)
		require.Empty(t, moves())
		require.Equal(t, a2, bd.Lives().Called())
		bd.Answered(bd.Load(), at, b1)
		require.Equal(t, []string{a2 + " " + b1 + " moved"}, moves())
	})
}

func TestALateAnswerDoesNotBringTheOldFormBack(t *testing.T) {
	a1, a2, _ := sealedForms(t)
	_, bd, was := renewed(t)
	bd.Answered(was, nil, a1)
	require.Equal(t, a2, bd.Lives().Called())
}

func TestCallsThatBeganBeforeANameWasSealedAnewStillCount(t *testing.T) {
	a1, _, b1 := sealedForms(t)
	at := (*Place)(nil).Named(a1) // as a stream that was opened then has it
	for name, does := range map[string]func(bd *Binding, was *State){
		"moved":             func(bd *Binding, was *State) { bd.Send(was, nil, b1) },
		"moved, a stream":   func(bd *Binding, was *State) { bd.Send(was, at, b1) },
		"drained":           func(bd *Binding, was *State) { bd.Leave(was, nil, "drained") },
		"drained, a stream": func(bd *Binding, was *State) { bd.Leave(was, at, "drained") },
		"refused":           func(bd *Binding, was *State) { bd.Refused(was, nil) },
		"refused, a stream": func(bd *Binding, was *State) { bd.Refused(was, at) },
		"released":          func(bd *Binding, was *State) { bd.Released(was, nil, a1) },
		"released, unnamed": func(bd *Binding, was *State) { bd.Released(was, nil, "") },
		"released, stream":  func(bd *Binding, was *State) { bd.Released(was, at, "") },
		"elsewhere":         func(bd *Binding, was *State) { bd.Answered(was, nil, b1) },
	} {
		t.Run(name, func(t *testing.T) {
			_, bd, was := renewed(t)
			now := bd.Load()
			does(bd, was)
			require.NotSame(t, now, bd.Load())
		})
	}
}

func TestAServerThatRefusesTwiceIsKnownByANewFormOfItsName(t *testing.T) {
	a1, a2, b1 := sealedForms(t)
	bd := new(Session).Bind(unique.Make("t"))
	bd.Restore((*Place)(nil).Named(b1))
	refusing(bd, a1)
	require.True(t, bd.Load().Passes(NewPlace(a2, 0, -1)))
	require.False(t, bd.Load().Passes(NewPlace(b1, 0, -1)))
}

func TestASessionThatIsSentWhereItIsStays(t *testing.T) {
	a1, _, _ := sealedForms(t)
	_, bd, was := renewed(t)
	now := bd.Load()
	bd.Send(was, nil, a1)
	require.Same(t, now, bd.Load())
}

func TestASessionThatIsToLeaveAServerIsNotHeldByANewFormOfItsName(t *testing.T) {
	a1, a2, _ := sealedForms(t)
	_, bd := in((*Place)(nil).Named(a1))
	bd.Leave(bd.Load(), nil, "drained")
	now := bd.Load()
	bd.Answered(now, nil, a2)
	require.Same(t, now, bd.Load())
}
