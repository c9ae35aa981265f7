package registry

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	testTTL    = 10 * time.Second
	testKeep   = 30 * time.Second
	testMargin = time.Second
)

// falls requires that the fence falls after d, and not before.
func falls(t *testing.T, f *Fence, d time.Duration) {
	t.Helper()
	time.Sleep(d - time.Nanosecond)
	require.False(t, f.Fenced(), "a nanosecond before")
	time.Sleep(time.Nanosecond)
	require.True(t, f.Fenced(), "on time")
}

func TestAFenceFallsWhenClientsCanHaveLetGo(t *testing.T) {
	for _, tc := range []struct {
		name            string
		keep, ttl, want time.Duration
	}{
		{"as long as clients keep it", testKeep, testTTL, testTTL + testKeep - testMargin},
		{"before the record can have gone", 0, testTTL, testTTL - testMargin},
		{"with less margin for a short TTL", 0, 2 * time.Second, 1800 * time.Millisecond},
		{"with no more than a second for a long one", 0, time.Minute, 59 * time.Second},
		{"and a negative time is none", -time.Hour, testTTL, testTTL - testMargin},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := NewFence(tc.keep)
				time.Sleep(time.Hour)
				f.stands(time.Now(), tc.ttl)
				falls(t, f, tc.want)
			})
		})
	}
}

func TestAServerIsAbsentWhenItsRecordCanHaveGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFence(testKeep)
		require.True(t, f.Absent(), "it never was there")
		f.stands(time.Now(), testTTL)
		time.Sleep(testTTL - testMargin - time.Nanosecond)
		require.False(t, f.Absent())
		time.Sleep(time.Nanosecond)
		require.True(t, f.Absent())
		require.False(t, f.Fenced())
		f.stands(time.Now(), testTTL)
		require.False(t, f.Absent(), "it is back")
		f.gone(time.Now(), testTTL)
		require.True(t, f.Absent(), "it is seen to be gone")
		f.close()
		require.True(t, f.Absent())
	})
}

func TestAnAnswerThatTookLongCountsFromItsRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFence(0)
		sent := time.Now()
		time.Sleep(4 * time.Second)
		f.stands(sent, testTTL)
		falls(t, f, testTTL-testMargin-4*time.Second)
	})
}

func TestAnAnswerToAnEarlierRequestTakesNothingAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFence(0)
		sent := time.Now()
		time.Sleep(4 * time.Second)
		f.stands(time.Now(), testTTL)
		f.stands(sent, testTTL)
		falls(t, f, testTTL-testMargin)
	})
}

func TestAFenceIsLiftedWhenTheServerIsRegisteredAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFence(testKeep)
		f.stands(time.Now(), testTTL)
		time.Sleep(time.Hour)
		require.True(t, f.Fenced())
		f.stands(time.Now(), testTTL)
		falls(t, f, testTTL+testKeep-testMargin)
	})
}

func TestARecordThatIsSeenToBeGoneCountsFromWhenItWasThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFence(testKeep)
		f.stands(time.Now(), testTTL)
		time.Sleep(3 * time.Second)
		seen := time.Now()
		time.Sleep(3 * time.Second)
		f.gone(seen, testTTL)
		falls(t, f, testKeep-testMargin-3*time.Second)
		f.stands(time.Now(), testTTL)
		require.False(t, f.Fenced())
	})
}

func TestARecordThatIsGoneIsNoReasonToWaitLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFence(testKeep)
		f.stands(time.Now(), testTTL)
		time.Sleep(time.Hour)
		f.gone(time.Now(), testTTL)
		require.True(t, f.Fenced())
	})
}

func TestAServerThatWasNeverRegisteredHasThatLongForItsPredecessorsClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		falls(t, NewFence(testKeep), testKeep-testMargin)
	})
}

func TestAServerThatKeepsNobodyIsFencedUntilItIsRegistered(t *testing.T) {
	f := NewFence(0)
	require.True(t, f.Fenced())
	f.stands(time.Now(), testTTL)
	require.False(t, f.Fenced())
}

func TestAClosedFenceHasFallen(t *testing.T) {
	f := NewFence(time.Hour)
	f.stands(time.Now(), testTTL)
	require.False(t, f.Fenced())
	f.close()
	require.True(t, f.Fenced())
	f.stands(time.Now(), testTTL)
	require.False(t, f.Fenced(), "it may be of another registration then")
}

func TestNoFenceNeverFalls(t *testing.T) {
	var f *Fence
	f.stands(time.Now(), testTTL)
	f.gone(time.Now(), testTTL)
	f.close()
	require.False(t, f.Fenced())
	require.False(t, f.Absent())
}

func TestAFenceThatNobodyMadeIsRefused(t *testing.T) {
	for _, f := range []*Fence{nil, {}} {
		err := WithFence(f).applyRegister(&Registration{})
		require.EqualError(t, err, "registry: fence must be made by NewFence")
	}
}

func TestToAskAFenceAllocatesNothing(t *testing.T) {
	f := NewFence(time.Hour)
	require.Zero(t, testing.AllocsPerRun(1000, func() { f.Fenced() }))
}

// fenced is a registration of which only the state and the fence are in use, and what
// it told.
func fenced(t *testing.T, keep time.Duration) (r *Registration, told func(...State)) {
	r = &Registration{fence: NewFence(keep), news: make(chan struct{})}
	var got []State
	r.told = newNotifier(func(s State) { got = append(got, s) })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	r.stands(time.Now(), testTTL)
	r.wrote(1, false)
	go func() {
		defer close(ended)
		r.watchFence(ctx)
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return r, func(want ...State) {
		t.Helper()
		synctest.Wait()
		require.Equal(t, want, got)
		require.Equal(t, want[len(want)-1], r.State())
	}
}

func TestTheFallOfTheFenceIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, told := fenced(t, testKeep)
		time.Sleep(testTTL)
		r.setState(Lost)
		time.Sleep(testKeep - testMargin - time.Nanosecond)
		told(Registered, Lost)
		time.Sleep(time.Nanosecond)
		told(Registered, Lost, Fenced)
		time.Sleep(time.Hour)
		r.stands(time.Now(), testTTL)
		r.wrote(2, true)
		told(Registered, Lost, Fenced, Registered, Draining)
	})
}

func TestAServerThatIsFencedIsNotMerelyLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, told := fenced(t, 0)
		time.Sleep(testTTL)
		told(Registered, Fenced)
		r.setState(Lost)
		told(Registered, Fenced)
	})
}

func TestARecordThatIsGoneIsToldOfInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, told := fenced(t, testKeep)
		time.Sleep(time.Second)
		r.fence.gone(time.Now(), testTTL)
		r.setState(Lost)
		time.Sleep(testKeep - testMargin - time.Nanosecond)
		told(Registered, Lost)
		time.Sleep(time.Nanosecond)
		told(Registered, Lost, Fenced)
	})
}

func TestWhatIsLostBehindAFallenFenceIsFencedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, told := fenced(t, 0)
		r.fence.gone(time.Now(), testTTL)
		r.setState(Lost)
		told(Registered, Fenced)
	})
}

func TestARenewalOfTheSameLeaseLiftsTheFence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, told := fenced(t, 0)
		time.Sleep(testTTL)
		told(Registered, Fenced)
		r.stands(time.Now().Add(-testTTL), testTTL)
		told(Registered, Fenced)
		r.stands(time.Now(), testTTL)
		told(Registered, Fenced, Registered)
		time.Sleep(testTTL)
		told(Registered, Fenced, Registered, Fenced)
	})
}

func TestARenewalWhileItDrainsGoesBackToDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, told := fenced(t, 0)
		r.wrote(2, true)
		time.Sleep(testTTL)
		r.stands(time.Now(), testTTL)
		told(Registered, Draining, Fenced, Draining)
	})
}

func TestRenewalsInTimeKeepTheFenceUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, told := fenced(t, 0)
		for range 100 {
			time.Sleep(testTTL / 3)
			r.stands(time.Now(), testTTL)
			require.False(t, r.fence.Fenced())
		}
		told(Registered)
	})
}

// In real time, which goes on between two looks at the fence.
func TestAFallIsToldOfHoweverSoonItComes(t *testing.T) {
	for i := range 3000 {
		r := &Registration{fence: NewFence(0), news: make(chan struct{}), told: newNotifier(nil)}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		r.stands(time.Now().Add(testMargin-testTTL+time.Duration(i%1000)*20*time.Nanosecond), testTTL)
		go func() {
			defer close(ended)
			r.watchFence(ctx)
		}()
		for begun := time.Now(); r.State() != Fenced && time.Since(begun) < 5*time.Second; {
			runtime.Gosched()
		}
		cancel()
		<-ended
		require.Equal(t, Fenced, r.State())
	}
}

func BenchmarkFenced(b *testing.B) {
	f := NewFence(time.Hour)
	b.ReportAllocs()
	for b.Loop() {
		f.Fenced()
	}
}
