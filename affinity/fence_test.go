package affinity_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

// funcFence is a fence that never is but absent, if at all.
type funcFence func() bool

func (f funcFence) Fenced() bool { return f() }
func (f funcFence) Absent() bool { return f() }

var alwaysFenced = funcFence(func() bool { return true })

// fence is one that stands, but for what is stored.
type fence struct{ fenced, absent atomic.Bool }

func (f *fence) Fenced() bool { return f.fenced.Load() }
func (f *fence) Absent() bool { return f.fenced.Load() || f.absent.Load() }

// fences are those of servers, by their names.
type fences map[string]*fence

// fall makes exactly these servers fenced.
func (f fences) fall(names ...string) {
	for _, fence := range f {
		fence.fenced.Store(false)
	}
	for _, name := range names {
		f[name].fenced.Store(true)
	}
}

// absent makes exactly these servers absent.
func (f fences) absent(names ...string) {
	for _, fence := range f {
		fence.absent.Store(false)
	}
	for _, name := range names {
		f[name].absent.Store(true)
	}
}

// inFences is inWorld with servers that have fences, and sign.
func inFences(t *testing.T, f func(t *testing.T, w *world, fences fences)) {
	t.Helper()
	inFencesOf(t, f, func(name string) []affinity.ServerOption {
		return []affinity.ServerOption{affinity.WithServerID(name)}
	}, stickybalancer.Config{}.ServiceConfig())
}

func inFencesOf(t *testing.T, f func(t *testing.T, w *world, fences fences), opts func(name string) []affinity.ServerOption, serviceConfig string) {
	t.Helper()
	inEmptyWorld(t, func(t *testing.T, w *world) {
		all := fences{}
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			all[name] = new(fence)
			w.start(name, append(opts(name), affinity.WithFence(all[name]))...)
		}
		w.list("a", "b", "c", "d", "e")
		f(t, w, all)
	}, serviceConfig)
}

// withoutA returns where ctx's calls go when a is gone for good.
func (w *world) withoutA(ctx context.Context) string {
	w.t.Helper()
	w.stop("a")
	w.list("b", "c", "d", "e")
	time.Sleep(time.Minute)
	got, err := w.call(ctx)
	require.NoError(w.t, err)
	return got
}

// isRefusal requires that err is one, made of that code and these names.
func isRefusal(t *testing.T, err error, code codes.Code, who string) {
	t.Helper()
	require.Equal(t, code, status.Code(err), "%v", err)
	require.Equal(t, "affinity: "+who+" out of the registry, and must not serve calls with affinity", status.Convert(err).Message())
	id, ok := affinity.MovedTo(err)
	require.True(t, ok)
	require.Empty(t, id)
}

func TestAFencedServerRefusesCallsWithAffinityBeforeTheHandlerRuns(t *testing.T) {
	for _, sh := range shapes {
		for _, header := range []string{affinity.IDHeader, affinity.KeyHeader} {
			t.Run(sh.name+" with "+header, func(t *testing.T) {
				ran := 0
				c := start(t, watch(func(context.Context) { ran++ }),
					affinity.ServerOptions(affinity.WithServerID("game-1"), affinity.WithFence(alwaysFenced)))
				got := sh.call(metadata.AppendToOutgoingContext(bg, header, "x"), c)
				want := codes.Aborted
				if sh.name == unaryShape.name {
					want = codes.FailedPrecondition
				}
				isRefusal(t, got.err, want, `server "game-1" is`)
				require.Zero(t, ran)
			})
		}
	}
}

func TestAFencedServerServesCallsWithoutAffinity(t *testing.T) {
	for _, sh := range shapes {
		t.Run(sh.name, func(t *testing.T) {
			c := start(t, &service{}, affinity.ServerOptions(affinity.WithFence(alwaysFenced)))
			require.NoError(t, sh.call(bg, c).err)
			empty := metadata.AppendToOutgoingContext(bg, affinity.IDHeader, "", affinity.KeyHeader, "")
			require.NoError(t, sh.call(empty, c).err, "an empty header is none")
		})
	}
}

func TestAServerWhoseFenceStandsServesCallsWithAffinity(t *testing.T) {
	for name, fence := range map[string]affinity.Fence{"open": new(fence), "nil": nil} {
		for _, sh := range shapes {
			t.Run(sh.name+", "+name, func(t *testing.T) {
				c := start(t, &service{}, affinity.ServerOptions(affinity.WithFence(fence)))
				require.NoError(t, sh.call(metadata.AppendToOutgoingContext(bg, affinity.KeyHeader, "x"), c).err)
			})
		}
	}
}

func TestARefusedCallGoesUnseenWhereItWouldGoWithoutThatServer(t *testing.T) {
	for _, tc := range []struct {
		name string
		ctx  func(w *world) context.Context
	}{
		{"key", func(w *world) context.Context { return affinity.WithKey(bg, w.keyAt("a")) }},
		{"id", func(*world) context.Context { return affinity.With(bg, "a") }},
		{"id and key", func(w *world) context.Context { return affinity.With(affinity.WithKey(bg, w.keyAt("b")), "a") }},
		{"key in a header", func(w *world) context.Context {
			return metadata.AppendToOutgoingContext(bg, affinity.KeyHeader, w.keyAt("a"))
		}},
		{"id in a header", func(*world) context.Context { return metadata.AppendToOutgoingContext(bg, affinity.IDHeader, "a") }},
		{"session", func(w *world) context.Context {
			s, _ := w.sessionAt("a")
			return s.Context(bg)
		}},
	} {
		for signs, opts := range map[string]func(string) []affinity.ServerOption{
			"signed":   func(name string) []affinity.ServerOption { return []affinity.ServerOption{affinity.WithServerID(name)} },
			"unsigned": func(string) []affinity.ServerOption { return nil },
		} {
			t.Run(tc.name+", "+signs, func(t *testing.T) {
				inFencesOf(t, func(t *testing.T, w *world, fences fences) {
					ctx := tc.ctx(w)
					fences.fall("a")
					before := w.game("a").served()
					got, err := w.call(ctx)
					require.NoError(t, err)
					require.NotEqual(t, "a", got)
					require.Equal(t, before, w.game("a").served(), "no handler of it ran")
					fences.fall()
					require.Equal(t, w.withoutA(ctx), got)
				}, opts, stickybalancer.Config{}.ServiceConfig())
			})
		}
	}
}

func TestACallIsSentPastThreeServersThatRefuseIt(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		fences.fall("a", "b", "c")
		for _, home := range []string{"a", "b", "c", "d", "e"} {
			fences.fall()
			key := w.keyAt(home)
			fences.fall("a", "b", "c")
			got, err := w.call(affinity.WithKey(bg, key))
			require.NoError(t, err)
			require.Contains(t, []string{"d", "e"}, got)
		}
	})
}

func TestAFourthRefusalIsAnErrorThatNamesTheServers(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		key := w.keyAt("a")
		fences.fall("a", "b", "c", "d", "e")
		before := w.served()
		_, err := w.call(affinity.WithKey(bg, key))
		require.Equal(t, codes.Aborted, status.Code(err), "no interceptor on the way takes it for a refusal of its own")
		id, ok := affinity.MovedTo(err)
		require.True(t, ok)
		require.Empty(t, id)
		require.Regexp(t, `^affinity: servers "a", "[b-e]", "[b-e]", "[b-e]" are out of the registry`, status.Convert(err).Message())
		require.Equal(t, before, w.served())
	})
}

// served returns how many handlers have run in all.
func (w *world) served() (n int) {
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		n += w.game(name).served()
	}
	return n
}

func TestTheOnlyServerIsAskedTwice(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		w.list("a")
		time.Sleep(time.Minute)
		s, m := w.sessionAt("a")
		fences.fall("a")
		for _, ctx := range []context.Context{affinity.With(bg, "a"), affinity.WithKey(bg, "k"), s.Context(bg)} {
			var r affinity.Route
			_, err := w.call(affinity.Observe(ctx, &r))
			isRefusal(t, err, codes.Aborted, `server "a" is`)
			require.Equal(t, 2, r.Attempts())
		}
		fences.fall()
		w.reaches("a", s.Context(bg))
		m.are(t)
	})
}

func TestASessionThatIsRefusedMovesOnce(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s, m := w.sessionAt("a")
		fences.fall("a")
		to, err := w.call(s.Context(bg))
		require.NoError(t, err)
		require.Equal(t, to, s.ID(worldTarget))
		m.are(t, "a "+to+" moved")
		fences.fall()
		for range 3 {
			w.reaches(to, s.Context(bg)) // it does not move back
		}
		m.are(t, "a "+to+" moved")
	})
}

func TestASessionMovesOnceThoughTwoServersRefuseIt(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s, m := w.sessionAt("a")
		fences.fall("a", "b", "c")
		to, err := w.call(s.Context(bg))
		require.NoError(t, err)
		require.Contains(t, []string{"d", "e"}, to)
		m.are(t, "a "+to+" moved")
	})
}

func TestCallsOfARefusedSessionThatAreMadeAtOnceMeet(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s, m := w.sessionAt("a")
		fences.fall("a", "b")
		var calls sync.WaitGroup
		got := make([]string, 20)
		for i := range got {
			calls.Go(func() { got[i], _ = w.call(s.Context(bg)) })
		}
		calls.Wait()
		for _, server := range got {
			require.Equal(t, s.ID(worldTarget), server)
		}
		m.are(t, "a "+s.ID(worldTarget)+" moved")
	})
}

func TestAnAbsentServerServesItsSessions(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s, m := w.sessionAt("a")
		key := w.keyAt("a")
		fences.absent("a")
		w.reaches("a", s.Context(bg))
		w.reaches("a", affinity.With(bg, "a"))
		w.reaches("a", affinity.WithKey(bg, key))
		require.NoError(t, w.open(affinity.WithKey(bg, key)).CloseSend())
		m.are(t)
	})
}

func TestAnAbsentServerTakesNothingThatAnotherHasRefused(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s, m := w.sessionAt("a")
		before := w.game("b").served() + w.game("c").served()
		fences.fall("a")
		fences.absent("b", "c")
		for i := range 20 {
			for _, ctx := range []context.Context{
				affinity.With(bg, "a"), affinity.With(affinity.WithKey(bg, fmt.Sprint(i)), "a"),
				metadata.AppendToOutgoingContext(bg, affinity.IDHeader, "a", affinity.KeyHeader, fmt.Sprint(i)),
			} {
				got, err := w.call(ctx)
				require.NoError(t, err)
				require.Contains(t, []string{"d", "e"}, got)
			}
		}
		var calls sync.WaitGroup
		for range 20 {
			calls.Go(func() { _, _ = w.call(s.Context(bg)) })
		}
		calls.Wait()
		require.Contains(t, []string{"d", "e"}, s.ID(worldTarget))
		require.Equal(t, before, w.game("b").served()+w.game("c").served())
		m.are(t, "a "+s.ID(worldTarget)+" moved")
	})
}

func TestAnAbsentServerTakesNoStreamThatAnotherHasRefused(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s, _ := w.sessionAt("a")
		fences.fall("a")
		fences.absent("b", "c")
		for range 3 {
			_, _ = w.open(s.Context(bg)).Recv()
		}
		ss := w.open(s.Context(bg))
		_, err := ss.Header()
		require.NoError(t, err)
		require.Contains(t, []string{"d", "e"}, s.ID(worldTarget))
	})
}

func TestCallsOfARefusedSessionSayUntilItHasArrivedThatItWasRefused(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s, _ := w.sessionAt("a")
		fences.fall("a")
		answer := make(chan struct{})
		var mu sync.Mutex
		var said []string
		for _, name := range []string{"b", "c", "d", "e"} {
			w.game(name).onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
				mu.Lock()
				said = append(said, strings.Join(metadata.ValueFromIncomingContext(ctx, "affinity-refused"), ","))
				mu.Unlock()
				<-answer
				return nil
			})
		}
		var calls sync.WaitGroup
		for range 3 {
			calls.Go(func() { _, _ = w.call(s.Context(bg)) })
			synctest.Wait()
		}
		close(answer)
		calls.Wait()
		_, err := w.call(s.Context(bg))
		require.NoError(t, err)
		require.Equal(t, []string{"1", "1", "1", ""}, said)
	})
}

func TestAnAbsentServerTakesWhatItsHolderSendsThere(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s, _ := w.sessionAt("a")
		fences.fall("a")
		for _, name := range []string{"b", "c", "d"} {
			w.game(name).fails(affinity.Moved("e"))
		}
		fences.absent("e")
		w.reaches("e", s.Context(bg))
	})
}

func TestAnAbsentServerTakesTheStreamsThatItsHolderSendsThere(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s, _ := w.sessionAt("a")
		fences.fall("a")
		for _, name := range []string{"b", "c", "d"} {
			w.game(name).onStream(func(grpc.ServerStream) error { return affinity.Moved("e") })
		}
		w.game("e").onStream(echo("e"))
		fences.absent("e")
		for range 2 { // a refuses the first, and another one sends the second to e
			_, err := w.open(s.Context(bg)).Recv()
			require.Error(t, err)
		}
		first, second := w.open(s.Context(bg)), w.open(s.Context(bg)) // it has not arrived yet
		w.says("e", first)
		w.says("e", second)
		require.Equal(t, "e", s.ID(worldTarget))
	})
}

func TestAnAbsentServerServesItsSessionsWhoeverRefusedThemBefore(t *testing.T) {
	inEmptyWorld(t, func(t *testing.T, w *world) {
		var fallen, e fence
		var late atomic.Bool
		answer := make(chan struct{})
		w.start("a", affinity.WithFence(funcFence(func() bool {
			if late.Load() {
				<-answer
			}
			return fallen.Fenced()
		})))
		w.start("b").fails(affinity.Moved("e"))
		w.start("e", affinity.WithFence(&e))
		w.list("a", "b", "e")
		s, m := w.sessionAt("a")
		fallen.fenced.Store(true)
		e.absent.Store(true)
		late.Store(true)
		var got string
		var err error
		go func() { got, err = w.call(s.Context(bg)) }()
		synctest.Wait()
		late.Store(false)
		w.reaches("e", s.Context(bg)) // b says so
		close(answer)
		synctest.Wait()
		require.NoError(t, err)
		require.Equal(t, "e", got)
		m.are(t, "a e moved")
	}, stickybalancer.Config{}.ServiceConfig())
}

func TestANewSessionThatIsRefusedHasNotMoved(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s := affinity.NewSession(w.keyAt("a"))
		m := watchMoves(s)
		fences.fall("a")
		to, err := w.call(s.Context(bg))
		require.NoError(t, err)
		require.Equal(t, to, s.ID(worldTarget))
		m.are(t)
	})
}

func TestASessionThatEverybodyRefusesStaysWhereItLived(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s, m := w.sessionAt("a")
		fences.fall("a", "b", "c", "d", "e")
		for range 5 {
			_, err := w.call(s.Context(bg))
			require.Equal(t, codes.Aborted, status.Code(err))
			require.Equal(t, "a", s.ID(worldTarget))
		}
		fences.fall()
		w.reaches("a", s.Context(bg))
		m.are(t)
	})
}

func TestARequiredCallThatIsRefusedGoesNowhereElse(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		fences.fall("a")
		before := w.served()
		var r affinity.Route
		_, err := w.call(affinity.Observe(affinity.Require(bg, "a"), &r))
		isRefusal(t, err, codes.Aborted, `server "a" is`)
		require.Equal(t, before, w.served())
		require.Equal(t, 1, r.Attempts())
	})
}

func TestACallThatIsMovedToAFencedServerEndsThere(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s, m := w.sessionAt("a")
		fences.fall("b")
		w.game("a").fails(affinity.Moved("b"))
		before := w.served()
		_, err := w.call(s.Context(bg))
		isRefusal(t, err, codes.Aborted, `server "b" is`)
		require.Equal(t, before+1, w.served())
		require.Equal(t, "a", s.ID(worldTarget))
		w.game("a").fails(nil)
		var r affinity.Route
		w.reaches("a", affinity.Observe(s.Context(bg), &r))
		require.Equal(t, 1, r.Attempts(), "it does not ask b again")
		m.are(t)
	})
}

func TestAMovedToTheServerThatHasRefusedIsNotFollowed(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		key := w.keyAt("a")
		fences.fall("a")
		for _, name := range []string{"b", "c", "d", "e"} {
			w.game(name).fails(affinity.Moved("a"))
		}
		before := w.served()
		_, err := w.call(affinity.WithKey(bg, key))
		id, ok := affinity.MovedTo(err)
		require.True(t, ok)
		require.Equal(t, "a", id)
		require.Equal(t, before+1, w.served())
	})
}

func TestARefusedCallFollowsMoved(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s, m := w.sessionAt("a")
		fences.fall("a")
		for _, name := range []string{"b", "c", "d"} {
			w.game(name).fails(affinity.Moved("e"))
		}
		w.reaches("e", s.Context(bg))
		m.are(t, "a e moved")
	})
}

func TestARefusedCallStaysWithinItsFirstDeadline(t *testing.T) {
	config := `{"loadBalancingConfig":[{"custom_round_robin":{}}],"methodConfig":[{"name":[{}],"timeout":"2s"}]}`
	inEmptyWorld(t, func(t *testing.T, w *world) {
		w.start("a", affinity.WithServerID("a"), affinity.WithFence(funcFence(func() bool {
			time.Sleep(time.Second)
			return true
		})))
		w.start("b").onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
			<-ctx.Done()
			return ctx.Err()
		})
		w.list("a", "b")
		start := time.Now()
		_, err := w.client.UnaryCall(affinity.With(bg, "a"), &testpb.SimpleRequest{})
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.Equal(t, 2*time.Second, time.Since(start))
	}, config)
}

func TestASessionWithAKeySendsNoID(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s, _ := w.sessionAt("a")
		w.game("a").onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
			require.Empty(t, metadata.ValueFromIncomingContext(ctx, affinity.IDHeader))
			return nil
		})
		for range 3 {
			w.reaches("a", s.Context(bg))
		}
	})
}

func TestASessionWithoutAKeyThatIsRefusedBeforeItHasArrivedMeetsTheOthersOfThatServer(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		atA := func() *affinity.Session {
			for {
				s := affinity.NewSession("")
				if got, err := w.call(s.Context(bg)); err == nil && got == "a" {
					return s
				}
			}
		}
		other := atA()
		answer := make(chan struct{})
		w.game("a").onUnary(func(context.Context, *testpb.SimpleRequest) error {
			<-answer
			return nil
		})
		var s *affinity.Session
		var first sync.WaitGroup
		for at := ""; at != "a"; {
			s = affinity.NewSession("")
			var r affinity.Route
			ctx := affinity.Observe(s.Context(bg), &r)
			first.Go(func() { _, _ = w.call(ctx) })
			synctest.Wait()
			at = r.ID()
		}
		fences.fall("a")
		to, err := w.call(s.Context(bg))
		require.NoError(t, err)
		w.reaches(to, other.Context(bg))
		close(answer)
		first.Wait()
		require.Equal(t, to, s.ID(worldTarget), "a late answer undoes nothing")
	})
}

func TestAServerCanTellThatCallsOfASessionWithoutAKeyBelongSomewhere(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s := affinity.NewSession("")
		m := watchMoves(s)
		var headers [][]string
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			w.game(name).onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
				headers = append(headers, metadata.ValueFromIncomingContext(ctx, affinity.IDHeader))
				return nil
			})
		}
		at, err := w.call(s.Context(bg))
		require.NoError(t, err)
		for range 2 {
			w.reaches(at, s.Context(bg))
		}
		require.Equal(t, [][]string{nil, {at}, {at}}, headers)

		fences.fall(at)
		to, err := w.call(s.Context(bg))
		require.NoError(t, err)
		require.NotEqual(t, at, to)
		require.Equal(t, []string{at}, headers[3], "it wanted that one")
		w.reaches(to, s.Context(bg))
		require.Equal(t, []string{to}, headers[4])
		m.are(t, at+" "+to+" moved")
	})
}

func TestASessionWithoutAKeyIsPassedOnAsOneWithAffinity(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		s := affinity.NewSession("")
		for {
			s.Forget(worldTarget)
			if got, err := w.call(s.Context(bg)); err == nil && got == "a" {
				break
			}
		}
		fences.fall("a", "b", "c")
		before := w.game("b").served() + w.game("c").served()
		to, err := w.call(s.Context(bg))
		require.NoError(t, err)
		require.Contains(t, []string{"d", "e"}, to)
		require.Equal(t, before, w.game("b").served()+w.game("c").served())
	})
}

// A proxy that is registered itself would be asked for by a name that means nothing to
// what it routes to.
func TestASessionWithoutAKeySendsNoNameThatNobodySigned(t *testing.T) {
	for name, opts := range map[string][]affinity.ServerOption{
		"unsigned": nil, "signed by another": {affinity.WithServerID("behind")},
	} {
		t.Run(name, func(t *testing.T) {
			inEmptyWorld(t, func(t *testing.T, w *world) {
				w.start("a", opts...)
				w.list("a")
				s := affinity.NewSession("")
				for range 3 {
					w.game("a").onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
						require.Empty(t, metadata.ValueFromIncomingContext(ctx, affinity.IDHeader))
						return nil
					})
					w.reaches("a", s.Context(bg))
				}
			}, stickybalancer.Config{}.ServiceConfig())
		})
	}
}

func TestARefusalThatAHandlerPassesOnDoesNotRunItAgain(t *testing.T) {
	inEmptyWorld(t, func(t *testing.T, w *world) {
		w.start("a", affinity.WithServerID("a"))
		w.start("b", affinity.WithServerID("b"))
		w.list("a", "b")
		behind := start(t, &service{}, affinity.ServerOptions(affinity.WithServerID("storage"), affinity.WithFence(alwaysFenced)))
		_, refusal := behind.UnaryCall(metadata.AppendToOutgoingContext(bg, affinity.KeyHeader, "k"), &testpb.SimpleRequest{})
		require.Equal(t, codes.FailedPrecondition, status.Code(refusal))
		w.game("a").fails(refusal)
		w.game("b").fails(refusal)
		key := "k"
		_, err := w.call(affinity.WithKey(bg, key))
		require.Equal(t, codes.Aborted, status.Code(err))
		require.Contains(t, status.Convert(err).Message(), `"storage"`)
		require.Equal(t, 1, w.game("a").served()+w.game("b").served())

		ss := w.open(affinity.WithKey(bg, key))
		_, err = ss.Recv()
		require.Equal(t, codes.Aborted, status.Code(err))
	}, stickybalancer.Config{}.ServiceConfig())
}

// refusals are errors that handlers get whose own calls were refused by storage.
func refusals(t *testing.T) map[string]error {
	t.Helper()
	so := affinity.ServerOptions(affinity.WithServerID("storage"), affinity.WithFence(alwaysFenced))
	ctx := metadata.AppendToOutgoingContext(bg, affinity.KeyHeader, "k")
	bare, followed := start(t, &service{}, so), start(t, &service{}, so, affinity.DialOptions()...)
	return map[string]error{
		"of a call":                         unaryShape.call(ctx, bare).err,
		"of a call that was followed":       unaryShape.call(ctx, followed).err,
		"of a call that must not go beyond": unaryShape.call(affinity.Require(bg, "storage"), followed).err,
		"of a stream":                       bidiShape.call(ctx, bare).err,
	}
}

func TestARefusalThatAHandlerPassesOnMovesNoSession(t *testing.T) {
	for name, refusal := range refusals(t) {
		t.Run(name, func(t *testing.T) {
			inEmptyWorld(t, func(t *testing.T, w *world) {
				w.start("a", affinity.WithServerID("a"))
				w.start("b", affinity.WithServerID("b"))
				w.list("a", "b")
				s := affinity.NewSession(w.keyAt("b"))
				m := watchMoves(s)
				w.list("a")
				time.Sleep(time.Minute)
				w.reaches("a", s.Context(bg))
				w.list("a", "b") // which is its home, and did not hold its state

				w.game("a").fails(refusal)
				ss := w.open(s.Context(bg))
				_, err := ss.Recv()
				require.Equal(t, codes.Aborted, status.Code(err))
				_, err = w.call(s.Context(bg))
				require.Equal(t, codes.Aborted, status.Code(err))

				w.game("a").fails(nil)
				w.reaches("a", s.Context(bg))
				m.are(t)
			}, stickybalancer.Config{}.ServiceConfig())
		})
	}
}

func TestARefusalThatAProxyPassesOnMakesASessionLeave(t *testing.T) {
	for name, refusal := range refusals(t) {
		t.Run(name, func(t *testing.T) {
			var asked []string
			c := start(t, &service{stream: func(ss grpc.ServerStream, reply any) error {
				asked = metadata.ValueFromIncomingContext(ss.Context(), affinity.IDHeader)
				_ = ss.SetHeader(metadata.Pairs(affinity.IDHeader, "storage"))
				_ = ss.SendMsg(reply)
				return refusal
			}}, affinity.ServerOptions(), affinity.DialOptions()...)
			s := affinity.NewSession("")
			for range 2 {
				require.Equal(t, codes.Aborted, status.Code(bidiShape.call(s.Context(bg), c).err))
				require.Empty(t, asked, "what is not to be asked again")
			}
		})
	}
}

func TestARefusalOfAStreamThatAUnaryHandlerPassesOnDoesNotRunItAgain(t *testing.T) {
	behind := start(t, &service{}, affinity.ServerOptions(affinity.WithFence(alwaysFenced)))
	refusal := bidiShape.call(metadata.AppendToOutgoingContext(bg, affinity.KeyHeader, "k"), behind).err
	require.Equal(t, codes.Aborted, status.Code(refusal))
	ran := 0
	c := start(t, &service{unary: func(context.Context) error { ran++; return refusal }}, nil, affinity.DialOptions()...)
	_, err := c.UnaryCall(affinity.WithKey(bg, "k"), &testpb.SimpleRequest{})
	require.Equal(t, codes.Aborted, status.Code(err))
	require.Equal(t, 1, ran)
}

func TestAMessageThatComesBehindTheFenceIsNotDelivered(t *testing.T) {
	for _, what := range []string{"message", "end of what the client sends"} {
		t.Run(what, func(t *testing.T) {
			inFences(t, func(t *testing.T, w *world, fences fences) {
				key := w.keyAt("a")
				got := make(chan error, 10)
				w.game("a").onStream(func(ss grpc.ServerStream) error {
					for {
						err := ss.RecvMsg(new(testpb.StreamingOutputCallRequest))
						if got <- err; err != nil {
							return nil // whatever it says
						}
					}
				})
				ss := w.open(affinity.WithKey(bg, key))
				require.NoError(t, ss.Send(&testpb.StreamingOutputCallRequest{}))
				require.NoError(t, <-got)
				synctest.Wait()
				fences.fall("a")
				if what == "message" {
					require.NoError(t, ss.Send(&testpb.StreamingOutputCallRequest{}))
				} else {
					require.NoError(t, ss.CloseSend())
				}
				isRefusal(t, <-got, codes.Aborted, `server "a" is`)
				_, err := ss.Recv()
				isRefusal(t, err, codes.Aborted, `server "a" is`)
			})
		})
	}
}

func TestNoMessageGoesOutBehindTheFence(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		key := w.keyAt("a")
		w.game("a").onStream(func(ss grpc.ServerStream) error {
			for range 2 {
				time.Sleep(time.Second)
				if err := ss.SendMsg(said("tick")); err != nil {
					isRefusal(t, err, codes.Aborted, `server "a" is`)
					fences.fall() // too late: the client has been sent away
				}
			}
			return errors.New("anything")
		})
		ss := w.open(affinity.WithKey(bg, key))
		_, err := ss.Recv()
		require.NoError(t, err)
		fences.fall("a")
		_, err = ss.Recv()
		isRefusal(t, err, codes.Aborted, `server "a" is`)
	})
}

func TestStreamsWithoutAffinityGoThroughTheFence(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			w.game(name).onStream(echo(name))
		}
		fences.fall("a", "b", "c", "d", "e")
		ss := w.open(bg)
		for range 3 {
			require.NoError(t, ss.Send(&testpb.StreamingOutputCallRequest{}))
			_, err := ss.Recv()
			require.NoError(t, err)
		}
		require.NoError(t, ss.CloseSend())
		_, err := ss.Recv()
		require.ErrorIs(t, err, io.EOF)
	})
}

func TestTheNextStreamOfARefusedSessionGoesElsewhere(t *testing.T) {
	inFences(t, func(t *testing.T, w *world, fences fences) {
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			w.game(name).onStream(echo(name))
		}
		s, m := w.sessionAt("a")
		ss := w.open(s.Context(bg))
		w.says("a", ss)
		fences.fall("a")
		require.NoError(t, ss.Send(&testpb.StreamingOutputCallRequest{}))
		_, err := ss.Recv()
		isRefusal(t, err, codes.Aborted, `server "a" is`)

		again := w.open(s.Context(bg))
		require.NoError(t, again.Send(&testpb.StreamingOutputCallRequest{}))
		_, err = again.Recv()
		require.NoError(t, err)
		to := s.ID(worldTarget)
		require.NotEqual(t, "a", to)
		m.are(t, "a "+to+" moved")
	})
}

func TestAStreamOfASessionGoesPastAllThatRefusedTheLastOnes(t *testing.T) {
	for _, lived := range []bool{true, false} {
		inFences(t, func(t *testing.T, w *world, fences fences) {
			for _, name := range []string{"a", "b", "c", "d", "e"} {
				w.game(name).onStream(echo(name))
			}
			s := affinity.NewSession(w.keyAt("a"))
			if lived {
				w.reaches("a", s.Context(bg))
			}
			fences.fall("a", "b", "c")
			opens := 0
			for ; ; opens++ {
				ss := w.open(s.Context(bg))
				_ = ss.Send(&testpb.StreamingOutputCallRequest{}) // Recv tells why it failed
				if _, err := ss.Recv(); err == nil {
					break
				}
				require.Less(t, opens, 3)
			}
			require.Contains(t, []string{"d", "e"}, s.ID(worldTarget))
		})
	}
}

func TestAStreamThatWouldLeaveADrainingServerInGoodOrderIsRefused(t *testing.T) {
	inFencesOf(t, func(t *testing.T, w *world, fences fences) {
		key := w.keyAt("a")
		w.game("a").onStream(echo("a"))
		ss := w.open(affinity.WithKey(bg, key))
		w.says("a", ss)
		fences.fall("a")
		require.NoError(t, ss.Send(&testpb.StreamingOutputCallRequest{}))
		_, err := ss.Recv()
		isRefusal(t, err, codes.Aborted, `server "a" is`)
	}, func(name string) []affinity.ServerOption {
		return []affinity.ServerOption{affinity.WithServerID(name), affinity.WithDrain(bg, time.Minute)}
	}, stickybalancer.Config{}.ServiceConfig())
}
