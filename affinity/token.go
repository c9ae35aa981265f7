package affinity

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
	"unique"

	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/sealed"
	"github.com/homing-grpc/homing/internal/session"
)

const (
	tokenPrefix = "h1." // the version

	// Whoever hands us a token must not choose how much we remember.
	maxToken   = sealed.MaxSession
	maxTargets = 64
	maxTarget  = 1 << 10
)

// token is what a session's text holds, as JSON.
type token struct {
	Key    string       `json:"k,omitempty"`
	Places []tokenPlace `json:"p,omitempty"`
}

type tokenPlace struct {
	Target      string `json:"t"`
	ID          string `json:"i"`
	Name        string `json:"a,omitempty"` // what answers said it is called
	Incarnation int64  `json:"n,omitempty"`
	Bare        bool   `json:"b,omitempty"` // the id is an address
}

// MarshalText implements [encoding.TextMarshaler]: the session's key, and where it
// lives, as a line of printable ASCII for a file or a cookie. It is neither secret nor
// sealed: a checksum finds damage, not malice; see [Sealer.SealSession]. It does not hold OnMove's function. A
// session with more than 64 targets, or a key or target that is too long, is an error.
func (s *Session) MarshalText() ([]byte, error) {
	t := token{Key: s.s.Key()}
	s.s.All(func(target string, p *session.Place) {
		t.Places = append(t.Places, tokenPlace{target, p.ID, p.Name(), p.Incarnation, p.Bare()})
	})
	slices.SortFunc(t.Places, func(a, b tokenPlace) int { return strings.Compare(a.Target, b.Target) })
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("affinity: marshal session: %w", err)
	}
	js, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("affinity: marshal session: %w", err)
	}
	js = binary.BigEndian.AppendUint64(js, callctx.Hash(string(js)))
	text := base64.RawURLEncoding.AppendEncode([]byte(tokenPrefix), js)
	if len(text) > maxToken {
		return nil, fmt.Errorf("affinity: marshal session: %d bytes are more than %d", len(text), maxToken)
	}
	return text, nil
}

// UnmarshalText implements [encoding.TextUnmarshaler]. The session gets the key of the
// one that was marshalled, and lives where that lived; whether the server is there,
// or has restarted since, shows with the next call. A text that is damaged, too long
// or of another version is an error, and leaves the session living nowhere, with the
// key that it had.
func (s *Session) UnmarshalText(text []byte) error {
	s.s.Reset()
	t, err := parseToken(text)
	if err != nil {
		return fmt.Errorf("affinity: unmarshal session: %w", err)
	}
	s.s.SetKey(t.Key)
	for _, tp := range t.Places {
		p := session.NewPlace(tp.ID, tp.Incarnation, -1)
		p.SetName(tp.Name)
		p.SetBare(tp.Bare)
		s.s.Bind(unique.Make(tp.Target)).Restore(p)
	}
	return nil
}

func parseToken(text []byte) (t token, err error) {
	if len(text) > maxToken {
		return t, fmt.Errorf("%d bytes are more than %d", len(text), maxToken)
	}
	body, ok := bytes.CutPrefix(text, []byte(tokenPrefix))
	if !ok {
		return t, fmt.Errorf("text must begin with %q, got %s", tokenPrefix, quote(string(text)))
	}
	if bytes.ContainsAny(body, "\r\n") {
		return t, errors.New("text is damaged: it has more than one line") // base64 would skip that
	}
	js, err := base64.RawURLEncoding.Strict().AppendDecode(nil, body)
	if err != nil {
		return t, fmt.Errorf("text is damaged: %w", err)
	}
	n := len(js) - 8
	if n < 0 || binary.BigEndian.Uint64(js[n:]) != callctx.Hash(string(js[:n])) {
		return t, errors.New("text is damaged: its checksum is wrong")
	}
	if err := json.Unmarshal(js[:n], &t); err != nil {
		return token{}, fmt.Errorf("text is damaged: %w", err)
	}
	if err := t.check(); err != nil {
		return token{}, err
	}
	return t, nil
}

func (t token) check() error {
	if why := unfit(t.Key); why != "" {
		return fmt.Errorf("key %s: %s", quote(t.Key), why)
	}
	if len(t.Places) > maxTargets {
		return fmt.Errorf("%d targets are more than %d", len(t.Places), maxTargets)
	}
	seen := make(map[string]bool, len(t.Places))
	for _, p := range t.Places {
		if len(p.Target) > maxTarget {
			return fmt.Errorf("target %s: %d bytes are more than %d", quote(p.Target), len(p.Target), maxTarget)
		}
		if !utf8.ValidString(p.Target) {
			return fmt.Errorf("target %s is not UTF-8", quote(p.Target)) // JSON would change it
		}
		if seen[p.Target] {
			return fmt.Errorf("target %s is there twice", quote(p.Target))
		}
		seen[p.Target] = true
		for _, id := range []string{p.ID, p.Name} {
			if why := unfit(id); why != "" {
				return fmt.Errorf("id %s: %s", quote(id), why)
			}
		}
		if p.ID == "" {
			return fmt.Errorf("id of target %s is empty", quote(p.Target))
		}
	}
	return nil
}
