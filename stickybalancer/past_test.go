package stickybalancer_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"
	"unique"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/metadata"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/stickybalancer"
)

// past returns ctx for a call that these servers have refused.
func past(ctx context.Context, ids ...string) context.Context {
	var v callctx.Value
	if old := callctx.From(ctx); old != nil {
		v = *old
	}
	v.Not = ids
	return callctx.With(ctx, v)
}

var ten = []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}

func TestARefusedCallGoesWhereOneGoesThatDoesNotKnowTheServer(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up(ten...)
		type call struct{ key, reached string }
		var calls []call
		refused := []string{"c", "g"}
		time.Sleep(time.Minute) // an id never listed is not waited for any more
		for _, how := range []func(key string) context.Context{
			func(key string) context.Context { return affinity.WithKey(bg, key) },
			func(key string) context.Context {
				return metadata.AppendToOutgoingContext(bg, affinity.KeyHeader, key)
			},
			func(key string) context.Context { return affinity.With(affinity.WithKey(bg, key), "c") },
			func(key string) context.Context { return affinity.With(affinity.WithKey(bg, key), "z") },
		} {
			for i := range 100 {
				key := fmt.Sprint("key-", i)
				got, err := w.call(past(how(key), refused...))
				require.NoError(t, err)
				calls = append(calls, call{key, got})
			}
		}
		w.list("a", "b", "d", "e", "f", "h", "i", "j")
		for _, name := range refused {
			w.stop(name)
		}
		time.Sleep(time.Minute)
		for _, c := range calls {
			w.reaches(c.reached, affinity.WithKey(bg, c.key))
		}
	})
}

func TestAnIDThatRefusedIsLeftForItsHome(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up(ten...)
		got, err := w.call(past(affinity.With(bg, "c"), "c"))
		require.NoError(t, err)
		w.reaches(got, past(metadata.AppendToOutgoingContext(bg, affinity.IDHeader, "c"), "c"))
		w.stop("c")
		time.Sleep(time.Minute)
		w.reaches(got, affinity.With(bg, "c"))
	})
}

func TestAnIDThatDidNotRefuseIsKept(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up(ten...)
		w.reaches("c", past(affinity.With(bg, "c"), "a", "b"))
	})
}

func TestARequiredIDIsRequiredThoughItRefused(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up(ten...)
		w.reaches("c", past(affinity.Require(bg, "c"), "c"))
	})
}

func TestARefusedCallPrefersServersThatAreListed(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up(ten...)
		w.list("i", "j!") // the others are kept
		for i := range 50 {
			w.reaches("i", past(affinity.WithKey(bg, fmt.Sprint(i)), "a"))
		}
		for i := range 50 {
			got, err := w.call(past(affinity.WithKey(bg, fmt.Sprint(i)), "i"))
			require.NoError(t, err)
			require.NotContains(t, []string{"i", "j"}, got, "one that drains comes last")
		}
		all := slices.DeleteFunc(slices.Clone(ten), func(id string) bool { return id == "j" })
		w.reaches("j", past(affinity.WithKey(bg, "k"), all...))
	})
}

func TestACallThatAllHaveRefusedGoesHome(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up(ten...)
		w.reaches("c", past(affinity.WithKey(bg, w.keyAt("c")), ten...))
	})
}

func TestARefusedCallWaitsForTheNextInsideTheWindow(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up(ten...)
		ctx := past(affinity.WithKey(bg, w.keyAt("c")), "c")
		next, err := w.call(ctx)
		require.NoError(t, err)
		w.stop(next)
		held := w.async(ctx)
		time.Sleep(time.Second)
		w.start(next)
		got, _, err := held()
		require.NoError(t, err)
		require.Equal(t, next, got)
	})
}

func TestASessionThatIsRefusedGoesWhereItsKeyGoes(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.up(ten...)
		key := w.keyAt("c")
		s := affinity.NewSession(key)
		m := watch(s)
		w.reaches("c", s.Context(bg))
		b := callctx.From(s.Context(bg)).Session.Find(unique.Make(worldTarget))
		st := b.Load()
		b.Refused(st, st.Place)
		next, err := w.call(s.Context(bg))
		require.NoError(t, err)
		w.reaches(next, past(affinity.WithKey(bg, key), "c"))
		m.are(t, "c "+next+" moved")
	})
}

func TestASessionThatWasRefusedComesBackToALaterStart(t *testing.T) {
	inWorld(t, stickybalancer.Config{}, func(t *testing.T, w *world) {
		w.start(ten...)
		w.list("a", "b", "c#1", "d")
		s := affinity.NewSession(w.keyAt("c"))
		w.reaches("c", s.Context(bg))
		b := callctx.From(s.Context(bg)).Session.Find(unique.Make(worldTarget))
		st := b.Load()
		b.Refused(st, st.Place)
		w.list("a", "b", "c#2", "d")
		w.reaches("c", s.Context(bg))
	})
}
