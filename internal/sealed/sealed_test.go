package sealed

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	secretA = count(0, 32)
	secretB = count(100, 64)
	secretC = count(200, 33)

	now  = time.Unix(1_999_996_400, 0)
	then = time.Unix(2_000_000_000, 0)
)

// count returns n bytes that go up from first.
func count(first, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(first + i)
	}
	return b
}

func ring(t testing.TB, secrets ...[]byte) Ring {
	t.Helper()
	r, err := NewRing(secrets...)
	require.NoError(t, err)
	return r
}

// golden were made by another program from the description of the format. They must
// open for as long as the prefix is what it is.
var golden = []struct {
	secrets [][]byte
	purpose Purpose
	value   string
	subject string
	text    string
}{
	{[][]byte{secretA}, ID, "game-1", "user-7", "hs1.yYF7M8N2mgIWDNqCVWxvO7XPdl8.AAAAAHc1lACa6HiooHlTPfkptS60KOffPxsj7fsEQciwTP5a0gfr-dW3N05Avg"},
	{[][]byte{secretA}, Key, "room-42", "user-7", "hs1.yYF7M06fA2N-j1lVMmDVTaSAjRw.AAAAAHc1lAAXVh7dCPZsR_xgqpXGm6VlSLLZSTKVkyoP6bUhDF6jZTax7H75kY8"},
	{[][]byte{secretA}, Session, "h1.text", "user-7", "hs1.yYF7M_kvidDsAm24TX4QrobmrTA.AAAAAHc1lABBPMTeT5XuYj_vTEitZxm8gdkEj2qf9sqznhvbfZnCK6WioXRgbt0"},
	{[][]byte{secretB, secretA}, ID, "game-1", "ü", "hs1.itGjfqMMgYT_hXe5Lgt-JiUL1nrJgXszH5ttgjQwkhNpumfayyRdTw.AAAAAHc1lABbvN7a_Fgfs25Xaj5vgdzjWsKUB9uiEaVIYC3sLIa-Jw_6KkbICQ"},
}

func TestTheFormatIsWhatItWas(t *testing.T) {
	for _, g := range golden {
		r := ring(t, g.secrets...)
		require.Equal(t, g.text, r.Seal(g.purpose, g.value, g.subject, then))
		got, err := r.Open(g.purpose, g.text, g.subject, now)
		require.NoError(t, err)
		require.Equal(t, g.value, got)
	}
}

func TestEveryLengthOpens(t *testing.T) {
	r := ring(t, secretA, secretB, secretC, count(7, 32))
	for n := 1; n <= MaxValue; n++ {
		v := strings.Repeat("x", n)
		text := r.Seal(ID, v, "s", then)
		require.LessOrEqual(t, len(text), maxText(MaxValue))
		got, err := r.Open(ID, text, "s", now)
		require.NoError(t, err)
		require.Equal(t, v, got)
		require.True(t, Like(text))
	}
	long := strings.Repeat("x", MaxSession)
	got, err := r.Open(Session, r.Seal(Session, long, "s", then), "s", now)
	require.NoError(t, err)
	require.Equal(t, long, got)
}

func TestATextShowsNothingOfTheValue(t *testing.T) {
	r := ring(t, secretA)
	text := r.Seal(ID, "game-1", "s", then)
	for part := range strings.SplitSeq(text, ".") {
		raw, _ := base64.RawURLEncoding.DecodeString(part)
		require.NotContains(t, string(raw), "game")
	}
}

func TestEverySingleByteChangeOfATextIsForged(t *testing.T) {
	for _, g := range golden {
		r := ring(t, g.secrets...)
		for i := range len(g.text) {
			for c := range 256 {
				if byte(c) == g.text[i] {
					continue
				}
				changed := g.text[:i] + string([]byte{byte(c)}) + g.text[i+1:]
				if _, err := r.Open(g.purpose, changed, g.subject, now); err != ErrForged {
					t.Fatalf("byte %d changed to %q: %v", i, byte(c), err)
				}
			}
			for _, damaged := range []string{g.text[:i], g.text[:i] + "\n" + g.text[i:], g.text[:i] + "A" + g.text[i:]} {
				_, err := r.Open(g.purpose, damaged, g.subject, now)
				require.Equal(t, ErrForged, err, "%q", damaged)
			}
		}
	}
}

func TestATextOpensForItsPurposeAlone(t *testing.T) {
	r := ring(t, secretA)
	purposes := []Purpose{ID, Key, Session}
	for _, sealed := range purposes {
		text := r.Seal(sealed, "x", "s", then)
		for _, opened := range purposes {
			_, err := r.Open(opened, text, "s", now)
			require.Equal(t, sealed == opened, err == nil, "%s as %s", sealed, opened)
		}
	}
}

func TestATextOpensForItsSubjectAlone(t *testing.T) {
	r := ring(t, secretA)
	text := r.Seal(ID, "x", "alice", then)
	for _, subject := range []string{"", "alic", "alice ", "Alice", "alice\x00", "bob"} {
		_, err := r.Open(ID, text, subject, now)
		require.Equal(t, ErrForged, err, "%q", subject)
	}
}

// What is hashed must not be the same when a byte goes from one field to the next.
func TestFieldsDoNotRunIntoEachOther(t *testing.T) {
	k := ring(t, secretA)[0]
	seen := map[string]string{}
	for _, f := range [][4]string{{"id", "s", "v", ""}, {"id", "sv", "", ""}, {"ids", "", "v", ""}, {"id", "s", "", "v"}, {"id", "", "sv", ""}} {
		h := string(sum(k.mac, Purpose(f[0]), f[1], []byte(f[2]), []byte(f[3])))
		require.Empty(t, seen[h])
		seen[h] = fmt.Sprint(f)
	}
}

func TestATextOpensUntilItExpires(t *testing.T) {
	r := ring(t, secretA)
	text := r.Seal(ID, "x", "s", then)
	_, err := r.Open(ID, text, "s", then.Add(-time.Nanosecond))
	require.NoError(t, err)
	for _, late := range []time.Time{then, then.Add(time.Hour)} {
		_, err = r.Open(ID, text, "s", late)
		require.Equal(t, ErrExpired, err)
		require.True(t, SaysExpired(text, late))
	}
	require.False(t, SaysExpired(text, then.Add(-time.Nanosecond)))
	require.False(t, SaysExpired("x", then))
}

// That a text has expired is no answer to one who made it up.
func TestOnlyAGenuineTextIsSaidToHaveExpired(t *testing.T) {
	r := ring(t, secretA)
	text := r.Seal(ID, "x", "s", now.Add(-time.Hour))
	for name, open := range map[string]func() (string, error){
		"another subject": func() (string, error) { return r.Open(ID, text, "t", now) },
		"another purpose": func() (string, error) { return r.Open(Key, text, "s", now) },
		"another key":     func() (string, error) { return ring(t, secretB).Open(ID, text, "s", now) },
		"damage":          func() (string, error) { return r.Open(ID, text[:len(text)-2]+"AA", "s", now) },
	} {
		_, err := open()
		require.Equal(t, ErrForged, err, name)
	}
}

func TestKeysRotate(t *testing.T) {
	steps := []Ring{ring(t, secretA), ring(t, secretA, secretB), ring(t, secretB, secretA), ring(t, secretB)}
	for i := range steps[1:] {
		for _, pair := range [][2]Ring{{steps[i], steps[i+1]}, {steps[i+1], steps[i]}} {
			text := pair[0].Seal(ID, "game-1", "s", then)
			got, err := pair[1].Open(ID, text, "s", now)
			require.NoError(t, err, "between steps %d and %d", i, i+1)
			require.Equal(t, "game-1", got)
			require.True(t, Same(text, pair[1].Seal(ID, "game-1", "s", then)), "a client sees one server")
			require.False(t, Same(text, pair[1].Seal(ID, "game-2", "s", then)))
		}
	}
	_, err := steps[3].Open(ID, steps[0].Seal(ID, "x", "s", then), "s", now)
	require.Equal(t, ErrForged, err, "its key is gone")
}

func TestTheFirstKeySeals(t *testing.T) {
	text := ring(t, secretB, secretA).Seal(Key, "x", "s", then)
	_, err := ring(t, secretB).Open(Key, text, "s", now)
	require.NoError(t, err)
	_, err = ring(t, secretA).Open(Key, text, "s", now)
	require.Equal(t, ErrForged, err)
}

func TestTwoFormsOfOneIDAreTheSame(t *testing.T) {
	r := ring(t, secretA)
	text := r.Seal(ID, "game-1", "s", then)
	for _, tc := range []struct {
		name string
		a, b string
		want bool
	}{
		{"renewed", text, r.Seal(ID, "game-1", "s", then.Add(time.Hour)), true},
		{"itself", text, text, true},
		{"another server", text, r.Seal(ID, "game-2", "s", then), false},
		{"another subject", text, r.Seal(ID, "game-1", "t", then), false},
		{"another key", text, ring(t, secretB).Seal(ID, "game-1", "s", then), false},
		{"a plain one", text, "game-1", false},
		{"plain ones", "hs1.a.b", "hs1.a.c", false},
		{"a damaged one", text, text[:len(text)-1] + "!", false},
		{"nothing", "", "", false},
	} {
		require.Equal(t, tc.want, Same(tc.a, tc.b), tc.name)
		require.Equal(t, tc.want, Same(tc.b, tc.a), tc.name)
	}
}

func TestKeysThatWillNotDoAreRefused(t *testing.T) {
	for _, tc := range []struct {
		secrets [][]byte
		why     string
	}{
		{nil, "there are 0 keys, must be 1 to 4"},
		{[][]byte{secretA, secretB, secretC, count(7, 32), count(8, 32)}, "there are 5 keys, must be 1 to 4"},
		{[][]byte{secretA, count(7, 31)}, "key 2 has 31 bytes, must have at least 32"},
		{[][]byte{nil}, "key 1 has 0 bytes, must have at least 32"},
		{[][]byte{secretA, secretB, bytes.Clone(secretA)}, "keys 1 and 3 are the same, or look the same by their fingerprints"},
	} {
		r, err := NewRing(tc.secrets...)
		require.Nil(t, r)
		require.EqualError(t, err, tc.why)
	}
}

func TestARingDoesNotKeepTheSecret(t *testing.T) {
	secret := bytes.Clone(secretA)
	r := ring(t, secret)
	clear(secret)
	require.Equal(t, golden[0].text, r.Seal(ID, golden[0].value, golden[0].subject, then))
}

func TestAFingerprintIsNoPartOfAnyKey(t *testing.T) {
	k := ring(t, secretA)[0]
	enc, err := hkdf.Key(sha256.New, secretA, nil, "homing sealed v1 encrypt", 32)
	require.NoError(t, err)
	for _, b := range [][]byte{secretA, k.name, k.mac, enc} {
		require.NotContains(t, string(b), string(k.fingerprint[:]))
	}
}

// FuzzOpen: what opens is exactly what was sealed; all else is refused with an error
// that says nothing.
func FuzzOpen(f *testing.F) {
	for _, g := range golden {
		f.Add(g.text, string(g.purpose), g.subject)
		f.Add(g.text[:len(g.text)-1], string(g.purpose), g.subject)
	}
	for _, text := range []string{"", "hs1.", "hs1..", "hs2.AAAA.AAAA", "hs1.AAAAAAAAAAAAAAAAAAAAAAAAAAA.AAAA", strings.Repeat("A", 1000)} {
		f.Add(text, "id", "s")
	}
	r := ring(f, secretA, secretB)
	f.Fuzz(func(t *testing.T, text, purpose, subject string) {
		p := Purpose(purpose)
		v, err := r.Open(p, text, subject, now)
		if err != nil {
			require.Contains(t, []error{ErrForged, ErrExpired}, err)
			require.Empty(t, v)
		} else {
			require.LessOrEqual(t, len(text), maxText(p.maxValue()))
			g := golden[0]
			for _, g = range golden {
				if g.text == text && g.purpose == p && g.subject == subject {
					break
				}
			}
			require.Equal(t, g.text, text, "nobody has sealed that")
			require.Equal(t, g.value, v)
		}
		if Like(text) {
			require.True(t, Same(text, text))
		}
		require.False(t, Same(text, subject) && !Same(subject, text), "not symmetric")
	})
}

// FuzzSeal: what was sealed opens, for its subject and purpose alone, and shows its size
// alone.
func FuzzSeal(f *testing.F) {
	f.Add("game-1", "user-7", "user-8")
	f.Add("x", "", "\x00")
	f.Add(strings.Repeat("x", MaxValue), "a", "b")
	f.Add("\x00\xff", "ü", "u")
	r := ring(f, secretA, secretB)
	f.Fuzz(func(t *testing.T, value, subject, other string) {
		if value == "" || len(value) > MaxValue {
			return
		}
		text := r.Seal(ID, value, subject, then)
		require.True(t, Like(text))
		require.Len(t, r.Seal(ID, strings.Repeat("x", len(value)), other, then), len(text))
		v, err := r.Open(ID, text, subject, now)
		require.NoError(t, err)
		require.Equal(t, value, v)
		if other != subject {
			_, err = r.Open(ID, text, other, now)
			require.Equal(t, ErrForged, err)
		}
	})
}

func BenchmarkSealAndOpen(b *testing.B) {
	for keys := 1; keys <= 2; keys++ {
		r := ring(b, [][]byte{secretA, secretB}[:keys]...)
		text := r.Seal(ID, "game-1", "user-7", then)
		b.Run(fmt.Sprintf("keys=%d/seal", keys), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r.Seal(ID, "game-1", "user-7", then)
			}
		})
		b.Run(fmt.Sprintf("keys=%d/open", keys), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = r.Open(ID, text, "user-7", now)
			}
		})
	}
}
