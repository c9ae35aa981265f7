package stickybalancer_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/metadata"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/logtest"
	"github.com/homing-grpc/homing/stickybalancer"
)

const addr1, addr2 = "10.0.0.1:7000", "10.0.0.2:7000"

// livesOn is a session that was stored elsewhere.
func livesOn(t *testing.T, id string) *affinity.Session {
	t.Helper()
	var s *affinity.Session
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start(id)
		w.list(id)
		before := affinity.NewSession("")
		w.reaches(id, before.Context(context.Background()))
		text, err := before.MarshalText()
		require.NoError(t, err)
		s = affinity.NewSession("")
		require.NoError(t, s.UnmarshalText(text))
	})
	return s
}

func TestACallThatNamesAnIDAmongAddressesIsWarnedOfOnce(t *testing.T) {
	stored := livesOn(t, "game-1")
	for name, call := range map[string]func(ctx context.Context) context.Context{
		"With":    func(ctx context.Context) context.Context { return affinity.With(ctx, "game-1") },
		"Require": func(ctx context.Context) context.Context { return affinity.Require(ctx, "game-1") },
		"header": func(ctx context.Context) context.Context {
			return metadata.AppendToOutgoingContext(ctx, affinity.IDHeader, "game-1")
		},
		"session": stored.Context,
	} {
		t.Run(name, func(t *testing.T) {
			warnings := logtest.Warnings(t, "stickybalancer")
			inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
				w.start(addr1, addr2)
				w.listPlain(addr1, addr2)
				_, _ = w.call(call(context.Background()))
				_, _ = w.call(call(context.Background()))
				synctest.Wait()
				require.Len(t, warnings(), 1)
				require.Contains(t, warnings()[0], "registry.NewBuilder")
				require.Contains(t, warnings()[0], "endpointsmeta.Set")
				require.NotContains(t, warnings()[0], "game-1")
			})
		})
	}
}

func TestACallThatNamesAnAddressIsNotWarnedOf(t *testing.T) {
	warnings := logtest.Warnings(t, "stickybalancer")
	inWorld(t, stickybalancer.Config{ReconnectWindow: -1}, func(t *testing.T, w *world) {
		w.start(addr1, addr2)
		w.listPlain(addr1, addr2)
		w.reaches(addr2, affinity.With(context.Background(), addr2))
		session := affinity.NewSession("player-7").Context(context.Background())
		for _, gone := range []string{addr1, addr2} {
			_, err := w.call(session)
			require.NoError(t, err)
			w.listPlain(map[string]string{addr1: addr2, addr2: addr1}[gone])
			time.Sleep(time.Minute) // the grace
			_, err = w.call(affinity.With(context.Background(), gone))
			require.NoError(t, err)
		}
		_, err := w.call(affinity.With(context.Background(), "10.0.0.9:7000"))
		require.NoError(t, err, "one that was here long ago")
		synctest.Wait()
		require.Empty(t, warnings())
	})
}

func TestACallThatNamesAnIDWhichIsGoneIsNotWarnedOf(t *testing.T) {
	warnings := logtest.Warnings(t, "stickybalancer")
	inWorld(t, stickybalancer.Config{ReconnectWindow: -1}, func(t *testing.T, w *world) {
		w.list()
		_, err := w.call(affinity.With(context.Background(), "game-1"))
		require.Error(t, err)
		w.start(addr1, addr2)
		w.list("game-2@"+addr2, addr1) // one of them says who it is
		_, err = w.call(affinity.With(context.Background(), "game-1"))
		require.NoError(t, err)
		synctest.Wait()
		require.Empty(t, warnings())
	})
}
