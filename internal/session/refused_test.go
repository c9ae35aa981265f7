package session

import (
	"testing"
	"unique"

	"github.com/stretchr/testify/require"
)

func refusing(b *Binding, ids ...string) {
	for _, id := range ids {
		p := NewPlace(id, 1, -1)
		b.Change(b.Load(), Tentative(b.Load(), p, "gone"))
		b.Refused(b.Load(), p)
	}
}

func names(places []*Place) (ids []string) {
	for _, p := range places {
		ids = append(ids, p.ID)
	}
	return ids
}

func TestASessionThatIsRefusedIsToLeaveForAnywhereElse(t *testing.T) {
	b := new(Session).Bind(unique.Make("t"))
	home := NewPlace("a", 1, -1)
	b.Restore(home)
	b.Refused(b.Load(), home)
	st := b.Load()
	require.Nil(t, st.Place)
	require.Equal(t, home, st.Prev)
	require.Equal(t, Moved, st.Reason)
	require.True(t, st.Passes(NewPlace("a", 1, -1)))
	require.False(t, st.Passes(NewPlace("a", 2, -1)), "another start of it has not refused")
	require.False(t, st.Passes(NewPlace("b", 1, -1)))
	require.False(t, st.Passes(nil))
	require.Equal(t, home, b.Lives())
}

func TestASessionThatLivesNowhereRemembersWhoRefusedIt(t *testing.T) {
	b := new(Session).Bind(unique.Make("t"))
	refusing(b, "a", "b")
	require.Equal(t, []string{"a", "b"}, names(b.Load().Not))
	require.Nil(t, b.Lives())
}

func TestASessionForgetsWhoRefusedItWhenItArrives(t *testing.T) {
	b := new(Session).Bind(unique.Make("t"))
	refusing(b, "a", "b")
	p := NewPlace("c", 1, -1)
	st := Tentative(b.Load(), p, Moved)
	require.True(t, b.Change(b.Load(), st))
	require.True(t, b.Confirm(st, p))
	require.Empty(t, b.Load().Not)
}

func TestWhereASessionIsSentItIsTold(t *testing.T) {
	b := new(Session).Bind(unique.Make("t"))
	home := NewPlace("a", 1, -1)
	b.Restore(home)
	b.Refused(b.Load(), home)
	third := NewPlace("b", 1, -1)
	require.True(t, b.Change(b.Load(), Tentative(b.Load(), third, Moved)))
	require.False(t, b.Load().Told)
	b.Send(b.Load(), third, "c")
	require.True(t, b.Load().Told)
	require.True(t, Tentative(b.Load(), NewPlace("c", 1, -1), Moved).Told, "more of it is known")
	require.False(t, Tentative(b.Load(), NewPlace("d", 1, -1), Moved).Told)
	b.Refused(b.Load(), NewPlace("c", 1, -1))
	require.False(t, b.Load().Told)
	require.Equal(t, []string{"a", "c"}, names(b.Load().Not))
}

func TestASessionIsBackWhereItLivedWhenEnoughHaveRefusedIt(t *testing.T) {
	for name, refused := range map[string][]string{
		"four": {"b", "c", "d", "e"}, "one of them twice": {"b", "c", "b"},
	} {
		t.Run(name, func(t *testing.T) {
			b := new(Session).Bind(unique.Make("t"))
			home := NewPlace("a", 1, -1)
			b.Restore(home)
			last := len(refused) - 1
			refusing(b, refused[:last]...)
			require.Len(t, b.Load().Not, last)
			refusing(b, refused[last])
			require.True(t, b.Load().Confirmed)
			require.Equal(t, home, b.Load().Place)

			b = new(Session).Bind(unique.Make("t"))
			refusing(b, refused...)
			require.Nil(t, b.Load(), "it lived nowhere")
		})
	}
}

func TestARefusalOfAServerThatTheSessionHasLeftChangesNothing(t *testing.T) {
	b := new(Session).Bind(unique.Make("t"))
	b.Restore(NewPlace("a", 1, -1))
	was := b.Load()
	for _, at := range []*Place{NewPlace("b", 1, -1), NewPlace("a", 2, -1)} {
		b.Refused(was, at)
		require.Equal(t, was, b.Load())
	}
	b.Restore(NewPlace("c", 1, -1))
	now := b.Load()
	b.Refused(was, nil)
	require.Equal(t, now, b.Load())
}

func TestAnAnswerOfAProxyFindsARefusedSessionThatLivedNowhere(t *testing.T) {
	b := new(Session).Bind(unique.Make("t"))
	refusing(b, "a")
	b.Answered(b.Load(), nil, "b")
	require.Equal(t, "b", b.Lives().Called())
}

func TestASessionWantsTheServerThatGoesByItsID(t *testing.T) {
	b := new(Session).Bind(unique.Make("t"))
	require.Empty(t, b.Load().Wanted())
	home := NewPlace("a", 1, -1)
	b.Restore(home)
	require.Empty(t, b.Load().Wanted(), "nobody has signed")
	home.Signed("behind")
	require.Empty(t, b.Load().Wanted(), "a proxy has not")
	home.Signed("a")
	require.Equal(t, "a", b.Load().Wanted())
	b.Refused(b.Load(), home)
	require.Equal(t, "a", b.Load().Wanted())

	b = new(Session).Bind(unique.Make("t"))
	st := Tentative(nil, home, Moved)
	require.True(t, b.Change(nil, st))
	b.Refused(st, home)
	require.Equal(t, "a", b.Load().Wanted(), "though it never lived there")
}
