package registry

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEveryStateIsToldInOrderAndNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []State
		n := newNotifier(func(s State) {
			time.Sleep(time.Hour)
			got = append(got, s)
		})
		want := []State{Registered, Lost, Registered, Draining, Closed}
		start := time.Now()
		for _, s := range want {
			n.add(s)
		}
		n.close()
		n.add(Lost)
		require.Zero(t, time.Since(start))
		time.Sleep(6 * time.Hour)
		synctest.Wait()
		require.Equal(t, want, got)
	})
}

func TestAMailboxHoldsTheNewestOnly(t *testing.T) {
	m := newMailbox()
	m.list([]Instance{{ID: "a"}})
	m.fail(errGuard)
	m.list([]Instance{{ID: "b"}})
	<-m.ready
	list, has, err := m.take()
	require.Equal(t, []Instance{{ID: "b"}}, list)
	require.True(t, has)
	require.NoError(t, err)
	select {
	case <-m.ready:
		t.Fatal("there is nothing more to take")
	default:
	}
}

func TestStatesHaveNames(t *testing.T) {
	for s, want := range map[State]string{Registered: "registered", Lost: "lost", Draining: "draining", Closed: "closed", Fenced: "fenced", 9: "State(9)"} {
		require.Equal(t, want, s.String())
	}
}
