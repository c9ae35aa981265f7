package faults

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/homing-grpc/homing/affinity"
)

func TestAMinuteOfRandomFaultsLosesNothingItMayNot(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	r, err := Soak{Seed: 42, Duration: time.Minute, Servers: 4, Members: 1, Log: t.Output()}.Run(t.Context())
	require.NoError(t, err)
	PrintSoak(t.Output(), r)
	require.Zero(t, len(r.Wrong), "see above")
	require.NotEmpty(t, r.Growth)
	require.Greater(t, r.Steps, 3)
}

func draw(seed uint64, n int) (steps []string) {
	s := newScript(seed, kinds(3), []string{"a", "b", "c", "d"}, soakChannels)
	for range n {
		st := s.next()
		steps = append(steps, fmt.Sprint(st.pause, " ", st))
	}
	return steps
}

func TestASeedAlwaysGivesTheSameScript(t *testing.T) {
	require.Equal(t, draw(1, 200), draw(1, 200))
	require.NotEqual(t, draw(1, 200), draw(2, 200))
}

func TestEveryFaultComesBeforeOneComesAgain(t *testing.T) {
	all := kinds(3)
	s := newScript(1, all, []string{"a", "b", "c"}, soakChannels)
	var got []*kind
	for len(got) < len(all) {
		got = append(got, s.draw().kind)
	}
	require.ElementsMatch(t, all, got)
}

func TestFaultsThatOverlapHaveVictimsOfTheirOwn(t *testing.T) {
	s := newScript(1, kinds(3), []string{"a", "b", "c"}, soakChannels)
	pairs := 0
	for range 2000 {
		in := s.next().incidents
		if len(in) == 1 {
			continue
		}
		pairs++
		require.Len(t, in, 2)
		require.False(t, in[0].kind.ofEtcd() && in[1].kind.ofEtcd(), in)
		require.False(t, in[0].kind.victim == aServer && in[1].kind.victim == aServer && in[0].server == in[1].server, in)
	}
	require.Positive(t, pairs)
}

// The judge is only as good as what it notices: each of these is a history of one session,
// which lives on server a, and whether something is wrong with it.
func TestTheJudgeOfSessions(t *testing.T) {
	a1, a2, b1 := worker{"a", "1"}, worker{"a", "2"}, worker{"b", "1"}
	ab := affinity.Move{From: "a", To: "b"}
	ba := affinity.Move{From: "b", To: "a"}
	aa := affinity.Move{From: "a", To: "a"}
	// call is one that is accepted and answered.
	call := func(s *tracked, w worker) {
		at := s.begin(0)
		s.accept(at.n, w)
		s.answer(at, w)
	}
	for _, tc := range []struct {
		name   string
		faults []string // servers that are killed before anything else
		do     func(s *tracked)
		wrong  string // "" if nothing is
	}{
		{"it stays", nil, func(s *tracked) { call(s, a1) }, ""},
		{"it moves", []string{"a"}, func(s *tracked) { s.moved(ab); call(s, b1) }, ""},
		{"it moves, told late", []string{"a"}, func(s *tracked) { call(s, b1); s.moved(ab) }, ""},
		{"it moves, and back", []string{"a", "b"}, func(s *tracked) { s.moved(ab); s.moved(ba); call(s, a1) }, ""},
		{"it moves for nothing", []string{"b"}, func(s *tracked) { s.moved(ab) }, "without need"},
		{"it moves from where it was not", []string{"a", "b"}, func(s *tracked) { s.moved(ba) }, "but was on a"},
		{"it is elsewhere without a move", []string{"a"}, func(s *tracked) { call(s, b1) }, "where it never stayed"},
		{"it is on a, b, a with one move", []string{"a"}, func(s *tracked) { s.moved(ab); call(s, b1); call(s, a1) }, "where it never stayed"},
		{"its server restarts", []string{"a"}, func(s *tracked) { call(s, a2); s.moved(aa); call(s, a2) }, ""},
		{"an attempt from before the move arrives after it", []string{"a"}, func(s *tracked) {
			at := s.begin(0)
			s.moved(ab)
			s.accept(at.n, a1)
			s.lose(at)
		}, ""},
		{"an attempt is lost where the session was never", nil, func(s *tracked) {
			at := s.begin(0)
			s.accept(at.n, b1)
			s.lose(at)
		}, "where it never stayed"},
		{"it tries another server while its own is away", []string{"a"}, func(s *tracked) {
			at := s.begin(0)
			s.accept(at.n, b1)
			s.lose(at)
		}, ""},
		{"a call is accepted twice", []string{"a"}, func(s *tracked) {
			at := s.begin(0)
			s.accept(at.n, a1)
			s.accept(at.n, a1)
		}, "again"},
		{"a call is accepted by one and answered by another", []string{"a"}, func(s *tracked) {
			at := s.begin(0)
			s.accept(at.n, a1)
			s.moved(ab)
			s.answer(at, b1)
		}, "was accepted by"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBook()
			s := newTracked("s", "", 0, fewAttempts, b, new(tally))
			call(s, a1)
			killed := kinds(1)[slices.IndexFunc(kinds(1), func(k *kind) bool { return k.away && k.breaks })]
			for _, id := range tc.faults {
				b.begin(&incident{kind: killed, server: id}, nil)
			}
			tc.do(s)
			for _, at := range s.suspects {
				at.ended = at.ended.Add(-untold)
			}
			s.doubt()
			if tc.wrong == "" {
				require.Empty(t, b.wrong)
			} else {
				require.Len(t, b.wrong, 1)
				require.Contains(t, b.wrong[0], tc.wrong)
			}
		})
	}
}

func TestTheJudgeOfLostCalls(t *testing.T) {
	b := newBook()
	b.called(2)
	ks := kinds(1)
	of := func(name string) *kind { return ks[slices.IndexFunc(ks, func(k *kind) bool { return k.name == name })] }
	began := time.Now()
	require.False(t, b.lost("a", 0, began), "there is no fault")
	b.begin(&incident{kind: of("etcd killed"), server: "a"}, nil)
	require.False(t, b.lost("a", 0, began), "etcd is no reason")
	reset := b.begin(&incident{kind: of("has its connections reset"), server: "a"}, nil)
	require.False(t, b.lost("a", 0, began), "nothing was cut yet")
	b.hit(reset)
	require.False(t, b.lost("b", 0, began), "another server")
	require.True(t, b.lost("a", 0, began))
	require.True(t, b.lost("a", 0, began))
	require.False(t, b.lost("a", 0, began), "more than can be on the wire")
	b.hit(reset)
	require.True(t, b.lost("a", 0, began))
	reset.hits = []time.Time{began.Add(-onWire)}
	reset.lost = 0
	require.False(t, b.lost("a", 0, began), "long over")
	reopen := b.begin(&incident{kind: of("closed, and opened anew"), server: "b", channel: 1}, nil)
	b.hit(reopen)
	require.True(t, b.lost("a", 1, began))
	require.False(t, b.lost("b", 0, began), "another channel")
}

func TestWhoMayHaveBeenAway(t *testing.T) {
	ks := kinds(1)
	of := func(name string) *kind { return ks[slices.IndexFunc(ks, func(k *kind) bool { return k.name == name })] }
	stop := &incident{kind: of("stopped, for more than the TTL"), server: "a"}
	reset := &incident{kind: of("has its connections reset"), server: "a"}
	drain := &incident{kind: of("drained, and replaced"), server: "a"}
	reopen := &incident{kind: of("closed, and opened anew"), server: "b", channel: 1}
	wipe := &incident{kind: of("etcd wiped"), server: "a"}
	outage := &incident{kind: of("etcd killed"), server: "a"}
	for _, tc := range []struct {
		name    string
		in      []*incident
		id      string
		channel int
		want    bool
	}{
		{"a server that drains", []*incident{drain}, "a", 0, true},
		{"another one", []*incident{drain}, "b", 0, false},
		{"a server that stands still", []*incident{stop}, "a", 0, false},
		{"a server without connections", []*incident{reset}, "a", 0, false},
		{"a wiped etcd", []*incident{wipe}, "a", 0, false},
		{"a server without connections, and etcd away", []*incident{reset, outage}, "a", 0, false},
		{"a server without connections, and etcd wiped", []*incident{reset, wipe}, "a", 0, true},
		{"another one, and etcd wiped", []*incident{reset, wipe}, "b", 0, false},
		{"a new channel", []*incident{reopen}, "a", 1, false},
		{"a new channel, and a server that stands still", []*incident{reopen, stop}, "a", 1, true},
		{"an old channel, and a server that stands still", []*incident{reopen, stop}, "a", 0, false},
		{"a new channel, and another server that stands still", []*incident{reopen, stop}, "b", 1, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBook()
			for _, i := range tc.in {
				b.begin(i, nil)
			}
			require.Equal(t, tc.want, b.away(tc.id, tc.channel, time.Now()))
			b.peace()
			require.False(t, b.away(tc.id, tc.channel, time.Now().Add(time.Millisecond)))
			require.Equal(t, tc.want, b.away(tc.id, tc.channel, time.Now().Add(-time.Second)))
		})
	}
}
