package session

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"unique"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	target = unique.Make("test:///game")

	a, b, c = NewPlace("a", 1, 0), NewPlace("b", 1, 1), NewPlace("c", 1, 2)

	answered  = balancer.DoneInfo{BytesSent: true, BytesReceived: true}
	unsent    = balancer.DoneInfo{}
	unsettled = balancer.DoneInfo{BytesSent: true}
)

func movedInfo(t testing.TB) balancer.DoneInfo {
	s, err := status.New(codes.FailedPrecondition, "").WithDetails(
		&errdetails.ErrorInfo{Reason: MovedReason, Domain: MovedDomain, Metadata: map[string]string{"id": "b"}})
	require.NoError(t, err)
	return balancer.DoneInfo{BytesSent: true, BytesReceived: true, Err: s.Err()}
}

// in returns a session, and what it knows of the target, that lives at p, if not nil.
func in(p *Place) (*Session, *Binding) {
	s := new(Session)
	bd := s.Bind(target)
	if p != nil {
		bd.Restore(p)
	}
	return s, bd
}

// goes makes an attempt at p, as a picker does, and returns how to end it.
func goes(t testing.TB, bd *Binding, p *Place, why Reason) func(balancer.DoneInfo) {
	old := bd.Load()
	next := Tentative(old, p, why)
	done := bd.Join(next)
	require.NotNil(t, done)
	require.True(t, bd.Change(old, next))
	return done
}

// told makes list the moves of s.
func told(s *Session) (list func() []string) {
	var mu sync.Mutex
	got := []string{}
	s.OnMove(func(m Move) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, fmt.Sprint(m.From, " ", m.To, " ", m.Reason))
	})
	return func() []string {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return append([]string{}, got...)
	}
}

func TestASessionThatHadNotArrivedLeavesNothing(t *testing.T) {
	_, bd := in(nil)
	goes(t, bd, a, "")(unsettled)
	bd.Leave(bd.Load(), a, "drained")
	require.Nil(t, bd.Load(), "a picker would have no place to come from")
}

func TestASessionLeavesOnlyWhereItIs(t *testing.T) {
	_, bd := in(a)
	bd.Leave(bd.Load(), b, "drained")
	require.Equal(t, a, bd.Load().Place)
	bd.Leave(nil, nil, "drained") // a proxy's late word
	require.Equal(t, a, bd.Load().Place)
	bd.Leave(bd.Load(), a, "drained")
	require.Nil(t, bd.Load().Place)
	require.Equal(t, a, bd.Lives())
	bd.Leave(bd.Load(), a, "drained")
	require.Equal(t, a, bd.Lives())
}

func TestTheFirstReasonForLeavingIsTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, bd := in(a)
		moves := told(s)
		goes(t, bd, b, "failed")(unsettled)
		goes(t, bd, c, "gone")(answered)
		require.Equal(t, []string{"a c failed"}, moves())
	})
}

func TestARestartDuringARestartIsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, bd := in(a)
		moves := told(s)
		goes(t, bd, NewPlace("a", 2, 0), "restarted")(unsettled)
		goes(t, bd, NewPlace("a", 3, 0), "restarted")(answered)
		require.Equal(t, []string{"a a restarted"}, moves())
		require.EqualValues(t, 3, bd.Lives().Incarnation)
	})
}

func TestASessionThatComesBackHasNotMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, bd := in(a)
		moves := told(s)
		goes(t, bd, b, "failed")(unsettled)
		goes(t, bd, NewPlace("a", 1, 9), "failed")(answered)
		require.Empty(t, moves())
		require.Equal(t, "a", bd.Lives().ID)
	})
}

func TestAServerThatSaysMovedIsNoHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, bd := in(a)
		moves := told(s)
		done := goes(t, bd, b, "failed")
		again := bd.Join(bd.Load())
		done(movedInfo(t))
		// One that met it in sending a message has it in the trailer alone.
		details, err := proto.Marshal(status.Convert(movedInfo(t).Err).Proto())
		require.NoError(t, err)
		again(balancer.DoneInfo{BytesSent: true, BytesReceived: true, Trailer: metadata.Pairs("grpc-status-details-bin", string(details))})
		require.Equal(t, a, bd.Lives())
		require.Equal(t, b, bd.Load().Place, "until somebody knows better")
		require.Empty(t, moves())
	})
}

func TestOneAnswerOfManyConfirms(t *testing.T) {
	_, bd := in(nil)
	first := goes(t, bd, a, "")
	second, third := bd.Join(bd.Load()), bd.Join(bd.Load())
	first(unsent)
	require.NotNil(t, bd.Load())
	second(answered)
	require.Equal(t, a, bd.Lives())
	third(unsent)
	require.Equal(t, a, bd.Lives())
}

func TestAStateThatDiedTakesNoMoreAttempts(t *testing.T) {
	_, bd := in(a)
	done := goes(t, bd, b, "failed")
	st := bd.Load()
	done(unsent)
	require.Equal(t, a.home(), bd.Load())
	require.Nil(t, bd.Join(st))
	// One who saw it die before it was replaced puts that right.
	bd.state.Store(st)
	require.Nil(t, bd.Join(st))
	require.Equal(t, a.home(), bd.Load())
}

func TestMovesAreToldInOrderOnOneGoroutineThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, bd := in(a)
		var now atomic.Int32
		var got []string
		release := make(chan struct{})
		s.OnMove(func(m Move) {
			if now.Add(1) > 1 {
				t.Error("two at once")
			}
			<-release
			got = append(got, m.From+m.To)
			now.Add(-1)
		})
		before := runtime.NumGoroutine()
		for _, p := range []*Place{b, c, a, b, a} {
			goes(t, bd, p, "failed")(answered)
		}
		synctest.Wait()
		require.Equal(t, before+1, runtime.NumGoroutine())
		close(release)
		synctest.Wait()
		require.Equal(t, []string{"ab", "bc", "ca", "ab", "ba"}, got)
		require.Equal(t, before, runtime.NumGoroutine())
	})
}

func TestOnMoveMayUseTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, bd := in(a)
		got := []string{}
		s.OnMove(func(m Move) {
			got = append(got, m.To)
			if m.To == "b" {
				goes(t, bd, c, "failed")(answered)
			}
			s.Key()
		})
		goes(t, bd, b, "failed")(answered)
		synctest.Wait()
		require.Equal(t, []string{"b", "c"}, got)
	})
}

func TestALaterOnMoveReplacesTheFirstAndNilEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, bd := in(a)
		s.OnMove(nil)
		goes(t, bd, b, "failed")(answered) // before it: not told
		first, second := told(s), []string(nil)
		s.OnMove(func(m Move) { second = append(second, m.To) })
		goes(t, bd, c, "failed")(answered)
		synctest.Wait()
		s.OnMove(nil)
		goes(t, bd, a, "failed")(answered)
		require.Empty(t, first())
		require.Equal(t, []string{"c"}, second)
	})
}

func TestATargetIsBoundOnce(t *testing.T) {
	s := new(Session)
	var wg sync.WaitGroup
	var bound [8][]*Binding
	for i := range bound {
		wg.Go(func() {
			for n := range 50 {
				bound[i] = append(bound[i], s.Bind(unique.Make(fmt.Sprint(n))))
			}
		})
	}
	wg.Wait()
	for _, other := range bound {
		require.Equal(t, bound[0], other)
	}
	require.Nil(t, s.Find(unique.Make("another")))
}

// Attempts of all kinds at once: whatever they come to, each move is told exactly once,
// in order, and what was confirmed is where the last one led.
func TestConcurrentAttemptsTellEachMoveOnce(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			s, bd := in(a)
			moves := []Move{}
			s.OnMove(func(m Move) { moves = append(moves, m) })
			places := []*Place{a, b, c}
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for range 200 {
						st := bd.Load()
						var done func(balancer.DoneInfo)
						switch p := places[rand.N(3)]; {
						case st != nil && !st.Confirmed && st.Place != nil && rand.N(2) == 0:
							done = bd.Join(st)
						case rand.N(20) == 0:
							bd.Leave(st, st.held(), "drained")
						case rand.N(20) == 0:
							bd.Send(st, st.held(), p.ID)
						default:
							next := Tentative(st, p, "failed")
							done = bd.Join(next)
							if !bd.Change(st, next) {
								done = nil
							}
						}
						if done != nil {
							done([]balancer.DoneInfo{answered, unsent, unsettled}[rand.N(3)])
						}
					}
				})
			}
			wg.Wait()
			synctest.Wait()
			at := "a"
			for _, m := range moves {
				require.Equal(t, at, m.From)
				require.NotEqual(t, m.From, m.To)
				at = m.To
			}
			require.NotEmpty(t, moves)
			require.Equal(t, at, bd.Lives().ID)
		})
	}
}

func TestJoinAndTheLastEndMeet(t *testing.T) {
	for range 2000 {
		_, bd := in(nil)
		done := goes(t, bd, a, "")
		st := bd.Load()
		var wg sync.WaitGroup
		var joined func(balancer.DoneInfo)
		wg.Go(func() { done(unsent) })
		wg.Go(func() { joined = bd.Join(st) })
		wg.Wait()
		if joined == nil {
			require.Nil(t, bd.Load(), "it died first")
			continue
		}
		require.Equal(t, st, bd.Load(), "it lives on")
		joined(answered)
		require.Equal(t, a, bd.Lives())
	}
}

// note opens a stream at p, and returns it with the number of times that it was ended.
func note(bd *Binding, p *Place) (*Stream, *int) {
	n := new(int)
	st := bd.Stream(func() *Place { return p }, func() { *n++ })
	st.Opened()
	return st, n
}

func TestAStreamIsLeftOnceAndOnlyByASessionThatLivesElsewhere(t *testing.T) {
	_, bd := in(a)
	onA, left := note(bd, a)
	onB, stayed := note(bd, b)
	require.Zero(t, *left)
	require.Equal(t, 1, *stayed, "the session had moved as it was opened")
	_, ok := onB.Left()
	require.True(t, ok)

	done := goes(t, bd, b, "failed")
	require.Zero(t, *left, "not before an answer")
	done(answered)
	goes(t, bd, c, "failed")(answered)
	require.Equal(t, 1, *left)
	to, ok := onA.Left()
	require.True(t, ok)
	require.Equal(t, "b", to)
	onA.End()
	onA.End()
	onB.End()
	require.Nil(t, bd.streams)
}

func TestAStreamOfAnEarlierStartOfTheServerIsLeft(t *testing.T) {
	_, bd := in(a)
	_, left := note(bd, a)
	goes(t, bd, NewPlace("a", 2, 0), "restarted")(answered)
	require.Equal(t, 1, *left)
}

func TestAStreamWhosePlaceIsNotKnownIsNotLeft(t *testing.T) {
	_, bd := in(a)
	_, left := note(bd, nil)
	goes(t, bd, b, "failed")(answered)
	require.Zero(t, *left)
}

func TestAStreamThatHasEndedIsNotLeft(t *testing.T) {
	_, bd := in(a)
	n := 0
	st := bd.Stream(func() *Place { return b }, func() { n++ })
	st.End()
	st.Opened()
	require.Zero(t, n)
}

func TestAStaleForgetDoesNothing(t *testing.T) {
	_, bd := in(a)
	st := bd.Load()
	goes(t, bd, b, "failed")(answered)
	bd.Forget(st)
	require.Equal(t, b, bd.Lives())
	bd.Forget(bd.Load())
	require.Nil(t, bd.Load())
}

func TestAnsweredNamesAnAddressAndNothingElse(t *testing.T) {
	bare := NewPlace("10.0.0.1:80", 0, 0)
	bare.SetBare(true)
	elsewhere := NewPlace("10.0.0.2:80", 0, 1)
	elsewhere.SetBare(true)
	for _, tc := range []struct {
		name string
		was  *Place
		at   *Place
		want string
	}{
		{"an address", bare, bare, "game-1"},
		{"another address", bare, elsewhere, "10.0.0.1:80"},
		{"a server that has an id", a, a, "a"},
		{"a named address, anew", bare.Named("game-0"), bare, "game-1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, bd := in(tc.was)
			bd.Answered(bd.Load(), tc.at, "game-1")
			require.Equal(t, tc.want, bd.Lives().Called())
		})
	}
}

func TestAnAddressThatAnswersUnderAnotherNameIsAMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bare := NewPlace("10.0.0.1:80", 0, 0)
		bare.SetBare(true)
		s, bd := in(bare)
		moves := told(s)
		was := bd.Load()
		bd.Answered(was, bare, "game-1")
		require.Empty(t, moves(), "now it has a name")
		bd.Answered(was, bare, "game-2")
		require.Empty(t, moves(), "that was a late answer")
		bd.Answered(bd.Load(), bare, "game-2")
		bd.Answered(bd.Load(), bare, "game-2")
		require.Equal(t, []string{"game-1 game-2 moved"}, moves())
	})
}

func TestAStreamAtAnAddressThatHasAnotherNameIsLeft(t *testing.T) {
	bare := NewPlace("10.0.0.1:80", 0, 0)
	bare.SetBare(true)
	_, bd := in(bare.Named("game-1"))
	_, left := note(bd, bare.Named("game-1"))
	_, unknown := note(bd, bare)
	bd.Answered(bd.Load(), bare, "game-2")
	require.Equal(t, 1, *left)
	require.Zero(t, *unknown)
}

func TestALateMovedThroughAProxyDoesNothing(t *testing.T) {
	proxied := (*Place)(nil).Named("a")
	_, bd := in(proxied)
	was := bd.Load()
	bd.Answered(was, nil, "b")
	bd.Send(was, nil, "c")
	require.Equal(t, "b", bd.Load().Place.Called())
	bd.Send(bd.Load(), nil, "c")
	require.Equal(t, "c", bd.Load().Place.Called())
}

func TestReleasedForgetsOnlyTheServerThatSaidSo(t *testing.T) {
	bare := NewPlace("10.0.0.1:80", 0, 0)
	bare.SetBare(true)
	for _, tc := range []struct {
		name  string
		lives *Place
		stale bool // the session has moved since the call
		at    *Place
		by    string
		want  bool
	}{
		{"the server", a, false, a, "", true},
		{"the server, signed", a, false, a, "a", true},
		{"the server, signed with a name of its own", a, false, a, "x", true},
		{"the server, by a call that was made before the session came", a, true, a, "", true},
		{"another one", a, true, b, "", false},
		{"another one, signed", a, true, b, "b", false},
		{"an address", bare, false, bare, "", true},
		{"an address that leads to many", bare.Named("x"), false, bare, "y", false},
		{"an address that leads to many, the right one", bare.Named("x"), false, bare, "x", true},
		{"through a proxy", (*Place)(nil).Named("x"), false, nil, "x", true},
		{"through a proxy, late", (*Place)(nil).Named("x"), true, nil, "x", true},
		{"through a proxy, another one", (*Place)(nil).Named("x"), true, nil, "y", false},
		{"through a proxy, not signed", (*Place)(nil).Named("x"), false, nil, "", true},
		{"through a proxy, not signed and late", (*Place)(nil).Named("x"), true, nil, "", false},
		{"nothing to forget", nil, false, a, "a", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, bd := in(tc.lives)
			was := bd.Load()
			if tc.stale {
				was = c.home()
			}
			bd.Released(was, tc.at, tc.by)
			require.Equal(t, tc.want, bd.Load() == nil)
		})
	}
}

func TestATrailerThatIsNonsenseIsAnAnswer(t *testing.T) {
	for _, details := range []string{"", "\xff"} {
		_, bd := in(nil)
		info := answered
		info.Trailer = metadata.Pairs("grpc-status-details-bin", details)
		goes(t, bd, a, "")(info)
		require.Equal(t, a, bd.Lives())
	}
}

func TestElsewhereOfNothing(t *testing.T) {
	for _, err := range []error{nil, fmt.Errorf("x"), status.Error(codes.FailedPrecondition, "x")} {
		_, ok := Elsewhere(err)
		require.False(t, ok)
	}
	id, ok := Elsewhere(movedInfo(t).Err)
	require.True(t, ok)
	require.Equal(t, "b", id)
}

// many returns n sessions that live at a, and the bytes that one takes.
func many(n int) ([]*Session, float64) {
	var before, after runtime.MemStats
	list := make([]*Session, n)
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range list {
		s := new(Session)
		s.SetKey("key")
		bd := s.Bind(target)
		next := Tentative(nil, a, "")
		done := bd.Join(next)
		bd.Change(nil, next)
		done(answered)
		list[i] = s
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	return list, float64(after.HeapAlloc-before.HeapAlloc) / float64(n)
}

func TestASessionIsSmall(t *testing.T) {
	list, bytes := many(100_000)
	t.Logf("%.0f bytes", bytes)
	require.LessOrEqual(t, bytes, 160.0)
	runtime.KeepAlive(list)
}

// BenchmarkSession reports what a session with one confirmed target takes: a gateway
// holds a million of them.
func BenchmarkSession(b *testing.B) {
	for b.Loop() {
		list, bytes := many(100_000)
		b.ReportMetric(bytes, "bytes/session")
		runtime.KeepAlive(list)
	}
}
