package stickybalancer_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

// The rows of the decision table, under fake time. Names say the row.

var bg = context.Background()

const window = stickybalancer.DefaultReconnectWindow

func unavailable(t *testing.T, err error, words ...string) {
	t.Helper()
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
	for _, word := range words {
		require.ErrorContains(t, err, word)
	}
}

func TestNothingGoesToEachReadyServerInTurn(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b", "c")
		require.Equal(t, map[string]int{"a": 100, "b": 100, "c": 100}, w.spread(300))
	})
}

func TestNothingIsSplitByWeight(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("a", "b", "c")
		w.list("a*1", "b*2", "c*3")
		require.Equal(t, map[string]int{"a": 100, "b": 200, "c": 300}, w.spread(600))
	})
}

func TestNothingFollowsAChangeOfWeight(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.list("a*3", "b*1")
		require.Equal(t, map[string]int{"a": 300, "b": 100}, w.spread(400))
		require.Equal(t, 1, w.dialed("a"), "a change of weight reconnects nothing")
	})
}

func TestNothingAvoidsADrainingServer(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("a", "b")
		w.list("a", "b!")
		require.Equal(t, map[string]int{"a": 10}, w.spread(10))
	})
}

func TestNothingWaitsForAServerThatDoesNotDrain(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("b")
		w.hold("a")
		w.list("a", "b!")
		done := w.async(bg)
		w.list("a", "b")
		server, took, err := done()
		require.NoError(t, err)
		require.Equal(t, "b", server)
		require.Zero(t, took)
	})
}

func TestNothingPrefersItsOwnZone(t *testing.T) {
	inWorld(t, stickybalancer.Config{Zone: "eu"}, func(t *testing.T, w *world) {
		w.start("a", "b", "c")
		w.list("a/eu", "b/us", "c/us")
		require.Equal(t, map[string]int{"a": 10}, w.spread(10))
		w.stop("a")
		require.Equal(t, map[string]int{"b": 5, "c": 5}, w.spread(10))
	})
}

func TestEverythingDrainingCountsAsNothingDraining(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("a", "b")
		w.list("a!", "b!")
		require.Equal(t, map[string]int{"a": 5, "b": 5}, w.spread(10))
		_, err := w.call(affinity.WithKey(bg, "k"))
		require.NoError(t, err)
		w.list("a!", "b")
		require.Equal(t, map[string]int{"b": 10}, w.spread(10))
		w.reaches("b", affinity.WithKey(bg, "k"))
	})
}

func TestARequiredServerIsReached(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b", "c")
		for range 10 {
			w.reaches("b", affinity.Require(bg, "b"))
		}
	})
}

func TestAPreferredServerIsReached(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b", "c")
		for range 10 {
			w.reaches("b", affinity.With(bg, "b"))
		}
	})
}

func TestAnIDIsNotAnAddress(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("x", "y")
		w.list("a@x", "b@y")
		w.reaches("y", affinity.Require(bg, "b"))
	})
}

func TestWithoutMetadataTheAddressIsTheID(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("x", "y")
		w.listPlain("x", "y")
		w.reaches("y", affinity.Require(bg, "y"))
	})
}

func TestADrainingServerKeepsItsOwn(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("a", "b")
		w.list("a", "b!")
		w.reaches("b", affinity.Require(bg, "b"))
		w.reaches("b", affinity.With(bg, "b"))
	})
}

func TestAKeptServerKeepsItsOwn(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.list("a")
		w.reaches("b", affinity.Require(bg, "b"))
		w.reaches("b", affinity.With(bg, "b"))
		require.Equal(t, map[string]int{"a": 10}, w.spread(10), "but gets nothing new")
		require.Equal(t, 1, w.dialed("b"))
	})
}

func TestAKeptServerServesEverythingWhenNothingElseIsLeft(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.list()
		require.Equal(t, map[string]int{"a": 5, "b": 5}, w.spread(10))
		w.list("a", "b")
		require.Equal(t, map[string]int{"a": 5, "b": 5}, w.spread(10))
		require.Equal(t, 1, w.dialed("a"), "an empty list for a moment reconnects nothing")
	})
}

func TestAServerIsKeptForTheGraceAndThenWaitedForForTheWindow(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.list("a")
		time.Sleep(stickybalancer.DefaultAbsentGrace - time.Nanosecond)
		w.reaches("b", affinity.Require(bg, "b"))
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		start := time.Now()
		_, err := w.call(affinity.Require(bg, "b"))
		unavailable(t, err, `"b"`, "has left")
		require.Equal(t, window, time.Since(start))
	})
}

func TestAKeptServerThatIsLostIsNotConnectedAgain(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.list("a")
		w.stop("b")
		w.reachesAfter(window, "a", affinity.With(bg, "b"))
		require.Equal(t, 1, w.dialed("b"))
	})
}

func TestAServerThatLeftAfterDrainingHasNoWindow(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.list("a", "b!")
		w.list("a")
		w.reaches("a", affinity.With(bg, "b"))
		_, err := w.call(affinity.Require(bg, "b"))
		unavailable(t, err, `"b"`, "has left")
	})
}

func TestAServerThatComesBackAfterAGoodbyeIsWaitedFor(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.list("a", "b!")
		w.list("a")
		w.stop("b")
		w.list("a", "b")
		done := w.async(affinity.With(bg, "b"))
		time.Sleep(time.Second)
		w.start("b2")
		w.list("a", "b@b2")
		server, took, err := done()
		require.NoError(t, err)
		require.Equal(t, "b2", server)
		require.Equal(t, time.Second, took)
	})
}

func TestARequiredServerIsWaitedForAndThenAnError(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.stop("b")
		time.Sleep(time.Second)
		start := time.Now()
		_, err := w.call(affinity.Require(bg, "b"))
		unavailable(t, err, `"b"`, "connection refused")
		require.Equal(t, window-time.Second, time.Since(start), "the window began when the connection was lost")
		start = time.Now()
		_, err = w.call(affinity.Require(bg, "b"))
		unavailable(t, err, `"b"`)
		require.Zero(t, time.Since(start))
	})
}

func TestARequiredServerIsWaitedForToTheDeadlineByWaitForReady(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.stop("b")
		ctx, cancel := context.WithTimeout(affinity.Require(bg, "b"), 20*time.Second)
		defer cancel()
		start := time.Now()
		_, err := w.call(ctx, grpc.WaitForReady(true))
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.ErrorContains(t, err, `"b"`)
		require.Equal(t, 20*time.Second, time.Since(start))

		done := w.async(affinity.Require(bg, "b"), grpc.WaitForReady(true))
		w.start("b")
		server, _, err := done()
		require.NoError(t, err)
		require.Equal(t, "b", server)
	})
}

func TestAPreferredServerIsWaitedForAndThenReplaced(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.stop("b")
		w.reachesAfter(window, "a", affinity.With(bg, "b"))
		w.reaches("a", affinity.With(bg, "b"))
	})
}

func TestAPreferredServerThatReturnsInsideTheWindowKeepsItsOwn(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.stop("b")
		done := w.async(affinity.With(bg, "b"))
		time.Sleep(500 * time.Millisecond)
		w.start("b")
		server, took, err := done()
		require.NoError(t, err)
		require.Equal(t, "b", server)
		require.Less(t, took, window)
	})
}

func TestAServerThatReturnsElsewhereUnderItsIDKeepsItsOwn(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("x", "y")
		w.list("a@x", "b@y")
		w.stop("y")
		done := w.async(affinity.Require(bg, "b"))
		time.Sleep(2 * time.Second)
		w.start("z")
		w.list("a@x", "b@z")
		server, took, err := done()
		require.NoError(t, err)
		require.Equal(t, "z", server)
		require.Equal(t, 2*time.Second, took, "a new address does not inherit the old one's backoff")
	})
}

func TestAllWhoHadOneServerMeetAgainOnOneServer(t *testing.T) {
	inWorld(t, stickybalancer.Config{ReconnectWindow: -1}, func(t *testing.T, w *world) {
		w.up("a", "b", "c", "d", "e")
		w.stop("b")
		first, err := w.call(affinity.With(bg, "b"))
		require.NoError(t, err)
		for range 20 {
			w.reaches(first, affinity.With(bg, "b"))
		}
	})
}

func TestALostServersKeyDecidesWhereItsCallsGo(t *testing.T) {
	inWorld(t, stickybalancer.Config{ReconnectWindow: -1}, func(t *testing.T, w *world) {
		w.up("a", "b", "c", "d", "e")
		w.stop("b")
		for _, key := range []string{"k1", "k2", "k3", "k4", "k5", "k6"} {
			home, err := w.call(affinity.WithKey(bg, key))
			require.NoError(t, err)
			w.reaches(home, affinity.With(affinity.WithKey(bg, key), "b"))
		}
	})
}

func TestAServerThatIsConnectingIsWaitedFor(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("a")
		w.hold("b")
		w.list("a", "b")
		w.reachesAfter(window, "a", affinity.With(bg, "b"))
	})
}

func TestAServerThatNeverWorkedIsWaitedForForTheWindow(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("a")
		w.list("a", "b")
		w.reachesAfter(window, "a", affinity.With(bg, "b"))
		_, err := w.call(affinity.Require(bg, "b"))
		unavailable(t, err, "connection refused by b")
	})
}

func TestAnIDNeverListedIsWaitedForForTheWindowSinceTheFirstList(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		time.Sleep(time.Second)
		start := time.Now()
		_, err := w.call(affinity.Require(bg, "nobody"))
		unavailable(t, err, `"nobody"`, "not in the resolver's list")
		require.Equal(t, window-time.Second, time.Since(start))
		_, err = w.call(affinity.With(bg, "nobody"))
		require.NoError(t, err)
		require.Equal(t, window-time.Second, time.Since(start), "and then for no longer")
	})
}

func TestAnIDThatIsListedInsideTheWindowIsReached(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a")
		done := w.async(affinity.Require(bg, "b"))
		time.Sleep(time.Second)
		w.start("b")
		w.list("a", "b")
		server, took, err := done()
		require.NoError(t, err)
		require.Equal(t, "b", server)
		require.Equal(t, time.Second, took)
	})
}

func TestAServerThatLeavesWhileItIsDownIsWaitedForFromItsLossOn(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.stop("b")
		time.Sleep(time.Second)
		w.list("a")
		w.reachesAfter(window-time.Second, "a", affinity.With(bg, "b"))
	})
}

func TestWithoutAWindowALostServerIsReplacedAtOnce(t *testing.T) {
	inWorld(t, stickybalancer.Config{ReconnectWindow: -1}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.stop("b")
		w.reaches("a", affinity.With(bg, "b"))
		_, err := w.call(affinity.Require(bg, "b"))
		unavailable(t, err, `"b"`)
		_, err = w.call(affinity.Require(bg, "nobody"))
		unavailable(t, err, `"nobody"`)
	})
}

func TestWithoutAWindowAServerNeverTriedGetsItsOneAttempt(t *testing.T) {
	inWorld(t, stickybalancer.Config{ReconnectWindow: -1, Connect: stickybalancer.ConnectLazy}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.reaches("b", affinity.With(bg, "b"))
		w.list("a", "b", "c") // nobody is there
		_, err := w.call(affinity.Require(bg, "c"))
		unavailable(t, err, "connection refused by c")
	})
}

func TestAnIdleServerIsConnectedByTheCallThatBelongsToIt(t *testing.T) {
	inWorld(t, stickybalancer.Config{Connect: stickybalancer.ConnectLazy}, func(t *testing.T, w *world) {
		w.up("a", "b", "c")
		time.Sleep(10 * time.Minute)
		require.Zero(t, w.dialed("b"))
		w.reaches("b", affinity.Require(bg, "b"))
		require.Zero(t, w.dialed("a")+w.dialed("c"), "and no other")
	})
}

func TestAnIdleServersOutageBeginsWithItsFirstAttempt(t *testing.T) {
	inWorld(t, stickybalancer.Config{Connect: stickybalancer.ConnectLazy}, func(t *testing.T, w *world) {
		w.start("a")
		w.hold("b")
		w.list("a", "b")
		time.Sleep(10 * time.Minute)
		start := time.Now()
		_, err := w.call(affinity.Require(bg, "b"))
		unavailable(t, err, `"b"`)
		require.Equal(t, window, time.Since(start))
	})
}

func TestKeylessCallsConnectLazyServersOneByOne(t *testing.T) {
	inWorld(t, stickybalancer.Config{Connect: stickybalancer.ConnectLazy}, func(t *testing.T, w *world) {
		w.up("a", "b", "c")
		w.spread(1)
		require.LessOrEqual(t, w.dialed("a")+w.dialed("b")+w.dialed("c"), 2)
		for range 3 { // a call connects the next server when the last one is connected
			w.spread(1)
			synctest.Wait()
		}
		require.Equal(t, map[string]int{"a": 10, "b": 10, "c": 10}, w.spread(30))
	})
}

func TestEveryCallHeldForALostServerIsReleasedByTheEndOfTheWindow(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.stop("b")
		var held []func() (string, time.Duration, error)
		for range 50 {
			held = append(held, w.async(affinity.With(bg, "b")))
		}
		for _, done := range held {
			server, took, err := done()
			require.NoError(t, err)
			require.Equal(t, "a", server)
			require.Equal(t, window, took)
		}
	})
}

func TestAHeldCallEndsWithItsContext(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.stop("b")
		ctx, cancel := context.WithCancel(affinity.Require(bg, "b"))
		done := w.async(ctx)
		cancel()
		_, took, err := done()
		require.Equal(t, codes.Canceled, status.Code(err))
		require.Zero(t, took)
	})
}

func TestAHeldCallEndsWithTheChannel(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.stop("b")
		done := w.async(affinity.Require(bg, "b"))
		w.conn.Close()
		_, took, err := done()
		require.Equal(t, codes.Canceled, status.Code(err))
		require.Zero(t, took)
	})
}

func TestAKeyHasOneHome(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b", "c")
		home, err := w.call(affinity.WithKey(bg, "k"))
		require.NoError(t, err)
		for range 10 {
			w.reaches(home, affinity.WithKey(bg, "k"))
		}
	})
}

func TestAKeysHomeIsHeldForTheWindowAndJoinsAgainWhenReady(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b", "c")
		ctx := affinity.WithKey(bg, "k")
		home, err := w.call(ctx)
		require.NoError(t, err)
		w.stop(home)
		start := time.Now()
		second, err := w.call(ctx)
		require.NoError(t, err)
		require.NotEqual(t, home, second)
		require.Equal(t, window, time.Since(start))
		w.start(home)
		time.Sleep(10 * time.Second)
		w.reaches(home, ctx)
	})
}

func TestTheContextWinsOverHeaders(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		ctx := metadata.AppendToOutgoingContext(bg, affinity.IDHeader, "a")
		w.reaches("a", ctx)
		w.reaches("b", affinity.With(ctx, "b"))
	})
}

func TestAnIDInTheMetadataIsHonoured(t *testing.T) {
	inWorld(t, stickybalancer.Config{IDHeader: "x-server"}, func(t *testing.T, w *world) {
		w.up("a", "b", "c")
		for range 5 {
			w.reaches("b", metadata.AppendToOutgoingContext(bg, "X-Server", "b"))
		}
	})
}

func TestAKeyInTheMetadataIsHonoured(t *testing.T) {
	inWorld(t, stickybalancer.Config{KeyHeader: "x-user"}, func(t *testing.T, w *world) {
		w.up("a", "b", "c")
		home, err := w.call(affinity.WithKey(bg, "k"))
		require.NoError(t, err)
		for range 5 {
			w.reaches(home, metadata.AppendToOutgoingContext(bg, "x-user", "k"))
		}
	})
}

func TestAnEmptyHeaderIsNone(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		got := map[string]int{}
		for range 10 {
			server, err := w.call(metadata.AppendToOutgoingContext(bg, affinity.IDHeader, "", affinity.KeyHeader, ""))
			require.NoError(t, err)
			got[server]++
		}
		require.Equal(t, map[string]int{"a": 5, "b": 5}, got)
	})
}

func TestHeadersCanBeOff(t *testing.T) {
	inWorld(t, stickybalancer.Config{IDHeader: "-"}, func(t *testing.T, w *world) {
		w.up("a", "b")
		got := map[string]int{}
		for range 10 {
			server, err := w.call(metadata.AppendToOutgoingContext(bg, affinity.IDHeader, "a"))
			require.NoError(t, err)
			got[server]++
		}
		require.Equal(t, map[string]int{"a": 5, "b": 5}, got)
	})
}

func TestOfTwoServersWithOneIDTheSmallerAddressIsUsed(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("x", "y")
		w.list("a@y", "a@x")
		w.reaches("x", affinity.Require(bg, "a"))
		require.Equal(t, map[string]int{"x": 4}, w.spread(4))
	})
}

func TestOfTwoIDsOnOneAddressTheSmallerIsUsed(t *testing.T) {
	inWorld(t, stickybalancer.Config{ReconnectWindow: -1}, func(t *testing.T, w *world) {
		w.start("x")
		w.list("b@x", "a@x")
		w.reaches("x", affinity.Require(bg, "a"))
		_, err := w.call(affinity.Require(bg, "b"))
		unavailable(t, err, `"b"`)
	})
}

func TestMetadataChangesReconnectNothing(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up("a", "b")
		w.list("a*7/eu!", "b")
		require.Equal(t, map[string]int{"b": 4}, w.spread(4))
		w.list("b", "a")
		require.Equal(t, map[string]int{"a": 2, "b": 2}, w.spread(4))
		require.Equal(t, 1, w.dialed("a"))
		require.Equal(t, 1, w.dialed("b"))
	})
}
