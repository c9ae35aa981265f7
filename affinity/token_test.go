package affinity_test

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unique"

	"github.com/stretchr/testify/require"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/session"
)

// place is where a session lives, for one target.
type place struct {
	id, name    string
	incarnation int64
	bare        bool
}

// living returns a session with this key that lives in these places.
func living(key string, places map[string]place) *affinity.Session {
	s := affinity.NewSession(key)
	for target, p := range places {
		pl := session.NewPlace(p.id, p.incarnation, -1)
		pl.SetName(p.name)
		pl.SetBare(p.bare)
		inner(s).Bind(unique.Make(target)).Restore(pl)
	}
	return s
}

func inner(s *affinity.Session) *session.Session { return callctx.From(s.Context(bg)).Session }

// places returns where s lives.
func places(s *affinity.Session) map[string]place {
	got := map[string]place{}
	inner(s).All(func(target string, p *session.Place) {
		got[target] = place{p.ID, p.Name(), p.Incarnation, p.Bare()}
	})
	return got
}

// sealed is a token that says js and has a checksum that is right.
func sealed(js string) []byte {
	b := binary.BigEndian.AppendUint64([]byte(js), callctx.Hash(js))
	return []byte("h1." + base64.RawURLEncoding.EncodeToString(b))
}

var everywhere = map[string]place{
	"etcd:///game":     {id: "game-1", incarnation: 1 << 60},
	"etcd:///chat":     {id: "chat-<&>\"\\", incarnation: -1},
	"dns:///plain":     {id: "10.0.0.1:80", name: "doc-1", bare: true},
	"dns:///bare":      {id: "10.0.0.2:80", bare: true},
	"passthrough:///p": {id: "doc-2", name: "doc-2"},
	"":                 {id: "x"},
	"ünïcode://":       {id: "y"},
}

func TestATokenHoldsAllThatASessionKnows(t *testing.T) {
	s := living("room-42", everywhere)
	text, err := s.MarshalText()
	require.NoError(t, err)
	for _, c := range text {
		require.True(t, c > ' ' && c <= '~' && c != ',' && c != ';' && c != '"' && c != '\\', "fit for a cookie: %q", c)
	}

	var again affinity.Session
	require.NoError(t, again.UnmarshalText(text))
	require.Equal(t, everywhere, places(&again))
	a, _ := affinity.FromContext(again.Context(bg))
	require.Equal(t, affinity.Affinity{Key: "room-42"}, a)
	require.Equal(t, "game-1", again.ID("etcd:///game"))
	require.Equal(t, "doc-1", again.ID("dns:///plain"))

	second, err := again.MarshalText()
	require.NoError(t, err)
	require.Equal(t, string(text), string(second), "the order of targets does not matter")
}

func TestATokenOfANewSessionHoldsItsKey(t *testing.T) {
	for _, key := range []string{"", "room-42"} {
		text, err := affinity.NewSession(key).MarshalText()
		require.NoError(t, err)
		var s affinity.Session
		require.NoError(t, s.UnmarshalText(text))
		a, _ := affinity.FromContext(s.Context(bg))
		require.Equal(t, key, a.Key)
		require.Empty(t, places(&s))
	}
}

func TestATokenTravelsInsideJSON(t *testing.T) {
	type saved struct{ Session *affinity.Session }
	js, err := json.Marshal(saved{living("k", everywhere)})
	require.NoError(t, err)
	var got saved
	require.NoError(t, json.Unmarshal(js, &got))
	require.Equal(t, everywhere, places(got.Session))
}

func TestASessionThatIsOnItsWayIsMarshalledWhereItWas(t *testing.T) {
	s := living("k", map[string]place{"t": {id: "a"}})
	b := inner(s).Find(unique.Make("t"))
	b.Leave(b.Load(), nil, affinity.ReasonDrained)
	require.Equal(t, map[string]place{"t": {id: "a"}}, places(s))
}

func TestUnmarshalReplacesWhatWasThere(t *testing.T) {
	text, err := living("new", map[string]place{"t": {id: "a"}}).MarshalText()
	require.NoError(t, err)
	s := living("old", everywhere)
	require.NoError(t, s.UnmarshalText(text))
	require.Equal(t, map[string]place{"t": {id: "a"}}, places(s))
	a, _ := affinity.FromContext(s.Context(bg))
	require.Equal(t, "new", a.Key)
}

// refuses requires that text is an error that says why, and leaves nothing behind.
func refuses(t *testing.T, text []byte, why string) {
	t.Helper()
	s := living("mine", everywhere)
	err := s.UnmarshalText(text)
	require.Error(t, err, "%q", text)
	require.Contains(t, err.Error(), "affinity: unmarshal session: ")
	require.Contains(t, err.Error(), why)
	require.Less(t, len(err.Error()), 400, "errors do not repeat what strangers send")
	require.Empty(t, places(s), "%q", text)
	a, _ := affinity.FromContext(s.Context(bg))
	require.Equal(t, "mine", a.Key)
}

func TestEverySingleByteChangeOfATokenIsAnError(t *testing.T) {
	for _, key := range []string{"room-4", "room-42", "room-421"} { // base64 has three kinds of ends
		text, err := living(key, map[string]place{"etcd:///game": {id: "game-1", incarnation: 7}}).MarshalText()
		require.NoError(t, err)
		for i := range text {
			for c := range 256 {
				if byte(c) == text[i] {
					continue
				}
				changed := append([]byte{}, text...)
				changed[i] = byte(c)
				s := affinity.NewSession("mine")
				if s.UnmarshalText(changed) == nil || len(places(s)) > 0 {
					t.Fatalf("byte %d changed to %q was accepted", i, byte(c))
				}
			}
			refuses(t, text[:i], "")
			refuses(t, append(append(append([]byte{}, text[:i]...), '\n'), text[i:]...), "")
		}
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	long := strings.Repeat("x", 257)
	good := sealed(`{"k":"k"}`)
	good = good[:len(good):len(good)]
	targets := func(n int) string {
		ps := []string{}
		for i := range n {
			ps = append(ps, fmt.Sprintf(`{"t":"%d","i":"a"}`, i))
		}
		return `{"p":[` + strings.Join(ps, ",") + `]}`
	}
	var s affinity.Session
	require.NoError(t, s.UnmarshalText(good))
	require.NoError(t, s.UnmarshalText(sealed(targets(64))))
	for _, tc := range []struct {
		name string
		text []byte
		why  string
	}{
		{"nothing", nil, `text must begin with "h1.", got ""`},
		{"another version", append([]byte("h2."), good[3:]...), `text must begin with "h1.", got "h2.`},
		{"what is long", append(good, strings.Repeat("A", 16<<10)...), "bytes are more than 16384"},
		{"a line more", append(good, '\n'), "more than one line"},
		{"characters more", append(good, "AAAA"...), "checksum"},
		{"padding", append(good, '='), "damaged"},
		{"a space more", append(good, ' '), "damaged"},
		{"the prefix alone", []byte("h1."), "checksum"},
		{"no JSON", sealed(`k`), "damaged"},
		{"JSON and more", sealed(`{"k":"k"}{}`), "damaged"},
		{"a list", sealed(`[]`), "damaged"},
		{"a key of another type", sealed(`{"k":7}`), "damaged"},
		{"a bad key", sealed(`{"k":"a\nb"}`), `key "a\nb": byte 1 is not printable ASCII`},
		{"a long key", sealed(`{"k":"` + long + `"}`), "257 bytes are more than 256"},
		{"a bad id", sealed(`{"p":[{"t":"t","i":"a\u0000"}]}`), `id "a\x00": byte 1 is not printable ASCII`},
		{"a long id", sealed(`{"p":[{"t":"t","i":"` + long + `"}]}`), "257 bytes are more than 256"},
		{"a bad name", sealed(`{"p":[{"t":"t","i":"a","a":" b"}]}`), `id " b": it starts or ends with a space`},
		{"no id", sealed(`{"p":[{"t":"t"}]}`), `id of target "t" is empty`},
		{"a target twice", sealed(`{"p":[{"t":"t","i":"a"},{"t":"t","i":"b"}]}`), `target "t" is there twice`},
		{"a long target", sealed(`{"p":[{"t":"` + strings.Repeat("x", 1025) + `","i":"a"}]}`), "1025 bytes are more than 1024"},
		{"many targets", sealed(targets(65)), "65 targets are more than 64"},
	} {
		t.Run(tc.name, func(t *testing.T) { refuses(t, tc.text, tc.why) })
	}
}

func TestMarshalRefusesWhatItCouldNotReadBack(t *testing.T) {
	many := map[string]place{}
	for i := range 65 {
		many[fmt.Sprint(i)] = place{id: "a"}
	}
	big := map[string]place{}
	for i := range 64 {
		big[fmt.Sprint(i, strings.Repeat("x", 1000))] = place{id: "a"}
	}
	for _, tc := range []struct {
		name   string
		key    string
		places map[string]place
		why    string
	}{
		{"a bad key", "a\nb", nil, `key "a\nb": byte 1 is not printable ASCII`},
		{"many targets", "", many, "65 targets are more than 64"},
		{"much of it", "", big, "bytes are more than 16384"},
		{"a target that JSON would change", "", map[string]place{"a\xff": {id: "a"}}, `target "a\xff" is not UTF-8`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text, err := living(tc.key, tc.places).MarshalText()
			require.Nil(t, text)
			require.ErrorContains(t, err, "affinity: marshal session: ")
			require.ErrorContains(t, err, tc.why)
		})
	}
}

func FuzzUnmarshalText(f *testing.F) {
	for _, s := range []*affinity.Session{affinity.NewSession(""), affinity.NewSession("k"), living("room-42", everywhere)} {
		text, err := s.MarshalText()
		require.NoError(f, err)
		f.Add(text, false)
		f.Add(text[:len(text)-1], false)
	}
	for _, js := range []string{`{}`, `null`, `{"k":"a","k":"b"}`, `{"K":"a","x":1}`, `{"p":[{"t":"\ud800","i":"a"}]}`,
		`{"p":[{"t":"t","i":"a","n":9223372036854775807}]}`, `{"p":[null]}`, `{"p":[{"t":"t","i":"a"},{"t":"t","i":"b"}]}`, `[`, ``} {
		f.Add([]byte(js), true)
	}
	f.Fuzz(func(t *testing.T, text []byte, seal bool) {
		if seal {
			text = sealed(string(text))
		}
		s := affinity.NewSession("mine")
		if s.UnmarshalText(text) != nil {
			require.Empty(t, places(s))
			return
		}
		again, err := s.MarshalText()
		require.NoError(t, err)
		var second affinity.Session
		require.NoError(t, second.UnmarshalText(again))
		require.Equal(t, places(s), places(&second))
		a, _ := affinity.FromContext(s.Context(bg))
		b, _ := affinity.FromContext(second.Context(bg))
		require.Equal(t, a, b)
	})
}
