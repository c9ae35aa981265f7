package affinity_test

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/logtest"
	"github.com/homing-grpc/homing/stickybalancer"
)

// warnedUnder makes calls to b, and one to a, in a channel with that service config, and
// returns the warnings.
func warnedUnder(t *testing.T, serviceConfig string) []string {
	t.Helper()
	warnings := logtest.Warnings(t, "affinity")
	inEmptyWorld(t, func(t *testing.T, w *world) {
		w.start("a", affinity.WithServerID("a"))
		w.start("b", affinity.WithServerID("b"))
		w.list("a", "b")
		for _, id := range []string{"a", "b", "b"} {
			_, err := w.call(affinity.With(bg, id))
			require.NoError(t, err)
		}
		synctest.Wait()
	}, serviceConfig)
	return warnings()
}

func TestACallToAServerWhosePolicyDoesNotLookIsWarnedOfOnce(t *testing.T) {
	warned := warnedUnder(t, `{}`)
	require.Len(t, warned, 1)
	require.Contains(t, warned[0], "WithDefaultServiceConfig")
}

func TestACallToAServerThatThePolicyFindsIsNotWarnedOf(t *testing.T) {
	require.Empty(t, warnedUnder(t, stickybalancer.Config{}.ServiceConfig()))
}

func TestACallThatThePolicySendsElsewhereIsNotWarnedOf(t *testing.T) {
	warnings := logtest.Warnings(t, "affinity")
	inEmptyWorld(t, func(t *testing.T, w *world) {
		w.start("a", affinity.WithServerID("a"))
		w.list("a")
		w.reaches("a", affinity.With(bg, "gone"))
		require.Empty(t, warnings())
	}, stickybalancer.Config{ReconnectWindow: -1}.ServiceConfig())
}

func TestACallThatAProxySendsToTheServerThatItNamesIsNotWarnedOf(t *testing.T) {
	warnings := logtest.Warnings(t, "affinity")
	inEmptyWorld(t, func(t *testing.T, w *world) {
		w.start("a", affinity.WithServerID("behind"))
		w.list("a")
		w.reaches("a", affinity.With(bg, "behind"))
		require.Empty(t, warnings())
	}, `{}`)
}
