package stickybalancer_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

// gRPC tries a server again a second after the first time, and then after longer.
func TestAServerThatHasStartedAgainIsConnectedAsSoonAsTheListSaysSo(t *testing.T) {
	for name, cfg := range map[string]stickybalancer.Config{
		"EAGER": {},
		"LAZY":  {Connect: stickybalancer.ConnectLazy},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, cfg, func(t *testing.T, w *world) {
				w.start("a", "b")
				w.list("a#1", "b#1")
				w.reaches("a", affinity.With(bg, "a"))
				w.stop("a")
				held := w.async(affinity.With(bg, "a"))
				time.Sleep(1500 * time.Millisecond) // it has been tried twice
				w.start("a")
				w.list("a#2", "b#1")
				server, took, err := held()
				require.NoError(t, err)
				require.Equal(t, "a", server)
				require.Equal(t, 1500*time.Millisecond, took)
			})
		})
	}
}

func TestAServerThatStartedAgainAfterTheWindowIsConnectedAsSoonAsTheListSaysSo(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("a", "b")
		w.list("a#1", "b#1")
		w.stop("a")
		time.Sleep(5 * time.Minute) // gRPC tries every two minutes by now
		w.start("a")
		w.list("a#2", "b#1")
		w.reaches("a", affinity.With(bg, "a"))
	})
}

func TestAListThatChangesLeavesTheBackoffOfAServerAlone(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("b")
		w.list("a#2", "b#1")
		dials := w.dialed("a")
		w.list("a*3#2", "b#1")
		w.list("a*3#1", "b#1") // an older one
		w.list("a*3", "b#1")   // of other code
		require.Equal(t, dials, w.dialed("a"))
	})
}

func TestAStartThatIsListedLateReconnectsNothing(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start("a", "b")
		w.list("a#1", "b#1")
		w.stop("a")
		w.start("a")
		time.Sleep(2 * time.Second)
		w.reaches("a", affinity.With(bg, "a"))
		dials := w.dialed("a")
		w.list("a#2", "b#1")
		w.reaches("a", affinity.With(bg, "a"))
		require.Equal(t, dials, w.dialed("a"))
	})
}
