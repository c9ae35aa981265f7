package affinity_test

import (
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/homing-grpc/homing/affinity"
)

var keyA, keyB = secret(0), secret(100)

// secret returns a key that is none.
func secret(first byte) []byte {
	b := make([]byte, 32)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

func newSealer(t testing.TB, keys ...[]byte) *affinity.Sealer {
	t.Helper()
	s, err := affinity.NewSealer(time.Hour, keys...)
	require.NoError(t, err)
	return s
}

// sealedID seals by keyA.
func sealedID(t testing.TB, id, subject string) string {
	t.Helper()
	text, err := newSealer(t, keyA).SealID(id, subject)
	require.NoError(t, err)
	return text
}

// These were made by another program. Time begins with the year 2000 in a bubble.
func TestSealedIDsAndKeysAreWhatTheyWere(t *testing.T) {
	const (
		id      = "hs1.yYF7M8N2mgIWDNqCVWxvO7XPdl8.AAAAADhtUZCa6HiooHm-W1qBD2e0d0NTuyBi4GPzHlRA3-abacxsHZPRgUFa_Q"
		key     = "hs1.yYF7M06fA2N-j1lVMmDVTaSAjRw.AAAAADhtUZAXVh7dCPZsGQe1ChRz3BUWegLmQ_u4rPgVOl6Z0mrRdxpy6YIvARE"
		rotated = "hs1._CpExKSPRZexC0CW788fz0EUKL7JgXszw3aaAhYM2oJVbG87tc92Xw.AAAAADhtUZBAHMHlayvMR2iuv5gpZL4UrfAvyAym6ZO0MGnX6jc0SZkgJUOQvw"
	)
	synctest.Test(t, func(t *testing.T) {
		s := newSealer(t, keyA)
		require.Equal(t, id, sealedID(t, "game-1", "user-7"))
		got, err := s.SealKey("room-42", "user-7")
		require.NoError(t, err)
		require.Equal(t, key, got)
		got, err = newSealer(t, keyB, keyA).SealID("game-1", "user-7")
		require.NoError(t, err)
		require.Equal(t, rotated, got)

		got, err = s.OpenID(id, "user-7")
		require.NoError(t, err)
		require.Equal(t, "game-1", got)
		got, err = s.OpenKey(key, "user-7")
		require.NoError(t, err)
		require.Equal(t, "room-42", got)
	})
}

func TestASealedIDOfAnotherSubjectIsRefused(t *testing.T) {
	_, err := newSealer(t, keyA).OpenID(sealedID(t, "game-1", "alice"), "mallory")
	require.Error(t, err)
	require.NotErrorIs(t, err, affinity.ErrExpired)
}

func TestASealedIDIsNoKeyAndAKeyNoID(t *testing.T) {
	s := newSealer(t, keyA)
	_, err := s.OpenKey(sealedID(t, "x", "s"), "s")
	require.Error(t, err)
	key, err := s.SealKey("x", "s")
	require.NoError(t, err)
	_, err = s.OpenID(key, "s")
	require.Error(t, err)
	require.Error(t, s.OpenSession(new(affinity.Session), key, "s"))
}

func TestASealedIDExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSealer(t, keyA)
		var shortest, longest time.Duration = time.Hour, 0
		for range 12 {
			time.Sleep(47 * time.Second)
			text, begun := sealedID(t, "game-1", "s"), time.Now()
			for {
				if _, err := s.OpenID(text, "s"); err != nil {
					require.ErrorIs(t, err, affinity.ErrExpired)
					require.EqualError(t, err, "affinity: open id: it has expired")
					break
				}
				time.Sleep(time.Second)
			}
			life := time.Since(begun)
			shortest, longest = min(shortest, life), max(longest, life)
		}
		require.GreaterOrEqual(t, shortest, time.Hour*7/8)
		require.LessOrEqual(t, longest, time.Hour)
	})
}

// All that is said of what is no good is that it is not.
func TestFailuresCannotBeToldApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := sealedID(t, "game-1", "s")
		time.Sleep(2 * time.Hour)
		s := newSealer(t, keyA)
		good := sealedID(t, "game-1", "s")
		other, err := newSealer(t, keyB).SealID("game-1", "s")
		require.NoError(t, err)
		key, err := s.SealKey("game-1", "s")
		require.NoError(t, err)
		for name, tc := range map[string]struct{ text, subject string }{
			"nothing":                      {"", "s"},
			"a plain id":                   {"game-1", "s"},
			"damaged":                      {good[:len(good)-1] + "A", "s"},
			"cut":                          {good[:len(good)-1], "s"},
			"longer":                       {good + "A", "s"},
			"long":                         {strings.Repeat("A", 1<<20), "s"},
			"of another version":           {"hs2" + good[3:], "s"},
			"another subject":              {good, "t"},
			"no subject":                   {good, ""},
			"another key":                  {other, "s"},
			"another purpose":              {key, "s"},
			"another subject, and expired": {old, "t"},
		} {
			_, err := s.OpenID(tc.text, tc.subject)
			require.EqualError(t, err, "affinity: open id: it is damaged, forged, or sealed for another", name)
			require.NotErrorIs(t, err, affinity.ErrExpired, name)
		}
	})
}

func TestWhatCannotBeSealedIsAnError(t *testing.T) {
	s := newSealer(t, keyA)
	for _, tc := range []struct{ name, id, subject, why string }{
		{"no id", "", "s", `affinity: seal id: "": it is empty`},
		{"a long id", strings.Repeat("x", 257), "s", "257 bytes are more than 256"},
		{"not printable", "a\n", "s", `"a\n": byte 1 is not printable ASCII`},
		{"no subject", "a", "", "affinity: seal id: the subject is empty"},
	} {
		text, err := s.SealID(tc.id, tc.subject)
		require.Empty(t, text, tc.name)
		require.ErrorContains(t, err, tc.why, tc.name)
	}
	_, err := s.SealKey("", "s")
	require.EqualError(t, err, `affinity: seal key: "": it is empty`)
}

func TestTheLongestIDIsSealedWithinItsBound(t *testing.T) {
	s := newSealer(t, keyA, keyB, secret(1), secret(2))
	long := strings.Repeat("x", 256)
	text, err := s.SealID(long, "s")
	require.NoError(t, err)
	require.Len(t, text, 507)
	got, err := s.OpenID(text, "s")
	require.NoError(t, err)
	require.Equal(t, long, got)
	require.Len(t, sealedID(t, "12345678", "s"), 96)
}

func TestASealedIDKeepsItsFormForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, forms := sealedID(t, "game-1", "s"), map[string]bool{}
		name, _, _ := strings.Cut(first[len("hs1."):], ".")
		for range 60 {
			text := sealedID(t, "game-1", "s")
			forms[text] = true
			require.Contains(t, text, name, "the first part stays")
			time.Sleep(time.Minute)
		}
		require.Len(t, forms, 8)
	})
}

func TestSealersThatWillNotDoAreRefused(t *testing.T) {
	for _, tc := range []struct {
		ttl  time.Duration
		keys [][]byte
		why  string
	}{
		{0, [][]byte{keyA}, "affinity: new sealer: ttl is 0s, must be at least 1m0s"},
		{-time.Hour, [][]byte{keyA}, "ttl is -1h0m0s, must be at least 1m0s"},
		{59 * time.Second, [][]byte{keyA}, "ttl is 59s, must be at least 1m0s"},
		{time.Hour, nil, "there are 0 keys, must be 1 to 4"},
		{time.Hour, [][]byte{keyA, keyB[:31]}, "key 2 has 31 bytes, must have at least 32"},
		{time.Hour, [][]byte{keyA, keyA}, "keys 1 and 2 are the same"},
	} {
		s, err := affinity.NewSealer(tc.ttl, tc.keys...)
		require.Nil(t, s)
		require.ErrorContains(t, err, tc.why)
	}
	for _, ttl := range []time.Duration{time.Minute, 1<<63 - 1} {
		s, err := affinity.NewSealer(ttl, keyA)
		require.NoError(t, err)
		text, err := s.SealID("a", "s")
		require.NoError(t, err)
		_, err = s.OpenID(text, "s")
		require.NoError(t, err, ttl)
	}
}

func TestASealerThatWasNotMadeSealsAndOpensNothing(t *testing.T) {
	for _, s := range []*affinity.Sealer{nil, {}} {
		_, err := s.SealID("a", "s")
		require.EqualError(t, err, "affinity: seal id: the sealer was not made by NewSealer")
		_, err = s.SealSession(affinity.NewSession("k"), "s")
		require.ErrorContains(t, err, "was not made by NewSealer")
		_, err = s.OpenID(sealedID(t, "a", "s"), "s")
		require.Error(t, err)
	}
}

func TestASealerDoesNotPrintItsKeys(t *testing.T) {
	var made [][]byte
	for _, use := range []string{"name", "encrypt", "mac"} {
		k, err := hkdf.Key(sha256.New, keyA, nil, "homing sealed v1 "+use, 32)
		require.NoError(t, err)
		made = append(made, k)
	}
	s := newSealer(t, keyA)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{s, *s, []any{*s}, struct{ s affinity.Sealer }{*s}} {
			printed := fmt.Sprintf(format, v)
			for _, k := range append(made, keyA) {
				for _, as := range []string{"%v", "%s", "%x", "%#v"} {
					require.NotContains(t, printed, strings.Trim(fmt.Sprintf(as, k), "[]"), format)
				}
			}
		}
	}
}

func TestASealerMayBeUsedByManyAtOnce(t *testing.T) {
	s := newSealer(t, keyA, keyB)
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for i := range 50 {
				id := fmt.Sprint("game-", n, "-", i)
				text, err := s.SealID(id, "s")
				got, openErr := s.OpenID(text, "s")
				if err != nil || openErr != nil || got != id {
					t.Error(err, openErr, got)
				}
			}
		})
	}
	wg.Wait()
}

func TestASealedSessionLivesWhereItLived(t *testing.T) {
	s := newSealer(t, keyA)
	text, err := s.SealSession(living("room-42", everywhere), "alice")
	require.NoError(t, err)
	for _, c := range text {
		require.True(t, c > ' ' && c <= '~' && c != ',' && c != ';' && c != '"' && c != '\\', "fit for a cookie: %q", c)
	}
	var again affinity.Session
	require.NoError(t, s.OpenSession(&again, text, "alice"))
	require.Equal(t, everywhere, places(&again))
	a, _ := affinity.FromContext(again.Context(bg))
	require.Equal(t, "room-42", a.Key)
}

func TestASealedSessionThatIsNoGoodLeavesTheSessionNowhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSealer(t, keyA)
		text, err := s.SealSession(living("room-42", everywhere), "alice")
		require.NoError(t, err)
		refused := func(text, subject string) error {
			t.Helper()
			mine := living("mine", everywhere)
			err := s.OpenSession(mine, text, subject)
			require.Error(t, err)
			require.Empty(t, places(mine))
			a, _ := affinity.FromContext(mine.Context(bg))
			require.Equal(t, "mine", a.Key)
			return err
		}
		plain, err := living("room-42", everywhere).MarshalText()
		require.NoError(t, err)
		for _, bad := range []error{
			refused(text, "mallory"),
			refused(text[:len(text)-1], "alice"),
			refused(string(plain), "alice"),
			refused(strings.Repeat("A", 1<<20), "alice"),
		} {
			require.EqualError(t, bad, "affinity: open session: it is damaged, forged, or sealed for another")
		}
		time.Sleep(time.Hour)
		require.ErrorIs(t, refused(text, "alice"), affinity.ErrExpired)
	})
}

func TestASessionThatCannotBeMarshalledCannotBeSealed(t *testing.T) {
	s := newSealer(t, keyA)
	_, err := s.SealSession(affinity.NewSession("a\n"), "s")
	require.ErrorContains(t, err, "affinity: seal session: affinity: marshal session: key")
	_, err = s.SealSession(nil, "s")
	require.Error(t, err)
	_, err = s.SealSession(affinity.NewSession("a"), "")
	require.EqualError(t, err, "affinity: seal session: the subject is empty")
	require.Error(t, s.OpenSession(nil, "", "s"))
}

// FuzzOpenSealed: what strangers send opens nothing, whatever they say it is.
func FuzzOpenSealed(f *testing.F) {
	sealer := newSealer(f, keyA)
	id, err := sealer.SealID("game-1", "alice")
	require.NoError(f, err)
	key, err := sealer.SealKey("room-42", "alice")
	require.NoError(f, err)
	session, err := sealer.SealSession(living("k", everywhere), "alice")
	require.NoError(f, err)
	for _, text := range []string{id, key, session} {
		f.Add(text, "alice")
		f.Add(text, "mallory")
		f.Add(text[:len(text)-1], "alice")
		f.Add(text+"\n", "alice")
	}
	f.Fuzz(func(t *testing.T, text, subject string) {
		gotID, idErr := sealer.OpenID(text, subject)
		gotKey, keyErr := sealer.OpenKey(text, subject)
		var s affinity.Session
		sessionErr := sealer.OpenSession(&s, text, subject)
		opened := 0
		for _, err := range []error{idErr, keyErr, sessionErr} {
			if err == nil {
				opened++
			} else {
				require.Less(t, len(err.Error()), 100, "errors do not repeat what strangers send")
			}
			if err == nil || errors.Is(err, affinity.ErrExpired) {
				require.Contains(t, []string{"alice", "user-7"}, subject, "nobody has sealed that")
			}
		}
		require.LessOrEqual(t, opened, 1, "it was one thing")
		require.Contains(t, []string{"", "game-1"}, gotID)
		require.Contains(t, []string{"", "room-42"}, gotKey)
		require.Subset(t, everywhere, places(&s))
		if sessionErr != nil {
			require.Empty(t, places(&s))
		}
	})
}
