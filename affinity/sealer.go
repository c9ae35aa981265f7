package affinity

import (
	"errors"
	"fmt"
	"time"

	"github.com/homing-grpc/homing/internal/sealed"
)

// ErrExpired is in the errors of a [Sealer] about what it has sealed itself, for the one
// who shows it, too long ago. Whoever gets it drops what has expired and goes on without:
// a client by a call without affinity, a login by a new session.
var ErrExpired = sealed.ErrExpired

// minTTL is the shortest life that clocks which are a little apart do not spoil.
const minTTL = time.Minute

// Sealer makes ids, keys and sessions fit to be handed to callers outside, and takes them
// back. What is sealed is printable ASCII, and whoever carries it can
//
//   - not read it, but for its length: there is nothing to learn of servers from it, and
//     two callers cannot find out whether they share one;
//   - not make it up, change it, or use an id as a key;
//   - not hand it on: it is good for one subject, which is whatever the service knows its
//     callers by, like the name of the user that has logged in;
//   - show it until it expires, as often as it likes. A sealed value is no proof of who
//     shows it: that is for what tells the subject.
//
// A sealed id may be renewed with every answer, and stays the same in the eyes of a
// [Session] that gets it: such a session behind a proxy is not told of a move when
// it is renewed, nor while keys are changed.
//
// A sealed id or key has at most 507 bytes, for a plain one of 256; with one key, one of
// 8 bytes has 96. The first part of what is sealed is of the value, the subject and the
// keys alone, the second one has when it expires, in steps of an eighth of the time to
// live: so all servers seal one id for one subject alike, and a proxy that cannot open
// it must not route by the whole of it for longer than a step.
//
// The format is that of version "hs1.", and will not change within it. It is AES-256-CTR
// and then HMAC-SHA256, under keys that HKDF makes of those given; the MAC is compared in
// constant time and before all else. It needs no randomness, so that an id has one form
// on all servers.
//
// A Sealer is safe for concurrent use. It has to be made by [NewSealer].
type Sealer struct {
	ttl  time.Duration
	ring sealed.Ring
}

// NewSealer returns a sealer by 1 to 4 keys of at least 32 bytes each, which are to be
// random, secret, and the same on all servers of a service; they are not kept. A service
// that is not to accept what another one has sealed needs keys of its own.
//
// The first key seals, and all of them open. To change keys, give the new one to all
// servers as the last one; when they all have it, make it the first; and when what the old
// one sealed has expired, leave that out.
//
// What is sealed is good for ttl, less an eighth of it at most. ttl must be a minute or
// longer; nothing is sealed for ever, as keys could never be changed then. Times are
// those of the servers' clocks, without a tolerance: as far as the clock of the one that
// opens is ahead of that of the one that seals, the ttl is shorter; as far as it is
// behind, longer. Let the ttl be a good deal longer than clocks are apart.
func NewSealer(ttl time.Duration, keys ...[]byte) (*Sealer, error) {
	if ttl < minTTL {
		return nil, fmt.Errorf("affinity: new sealer: ttl is %v, must be at least %v", ttl, minTTL)
	}
	ring, err := sealed.NewRing(keys...)
	if err != nil {
		return nil, fmt.Errorf("affinity: new sealer: %w", err)
	}
	return &Sealer{ttl, ring}, nil
}

// SealID seals the id of a server for subject, neither of which may be empty.
func (s *Sealer) SealID(id, subject string) (string, error) {
	return s.sealValue(sealed.ID, id, subject)
}

// OpenID returns the id that [Sealer.SealID] has sealed for subject. The error wraps
// [ErrExpired] for what has expired, and is the same for all else: damaged, forged,
// sealed for another subject, for something else than an id, or by a key that is gone.
func (s *Sealer) OpenID(text, subject string) (string, error) {
	return s.openValue(sealed.ID, text, subject)
}

// SealKey is [Sealer.SealID] for a session key.
func (s *Sealer) SealKey(key, subject string) (string, error) {
	return s.sealValue(sealed.Key, key, subject)
}

// OpenKey is [Sealer.OpenID] for a session key.
func (s *Sealer) OpenKey(text, subject string) (string, error) {
	return s.openValue(sealed.Key, text, subject)
}

// SealSession seals what [Session.MarshalText] gives, for subject, which must not be
// empty: a line fit for a cookie, a third longer than that and about 90 bytes.
func (s *Sealer) SealSession(session *Session, subject string) (string, error) {
	if session == nil {
		return "", errors.New("affinity: seal session: there is none")
	}
	text, err := session.MarshalText()
	if err != nil {
		return "", fmt.Errorf("affinity: seal session: %w", err)
	}
	return s.seal(sealed.Session, string(text), subject)
}

// OpenSession makes session what [Sealer.SealSession] has sealed for subject, by
// [Session.UnmarshalText]. The errors are those of [Sealer.OpenID]; after one, session
// lives nowhere and has the key that it had, so that it may be used all the same.
func (s *Sealer) OpenSession(session *Session, text, subject string) error {
	if session == nil {
		return errors.New("affinity: open session: there is none")
	}
	plain, err := s.open(sealed.Session, text, subject)
	if err != nil {
		session.s.Reset()
		return err
	}
	return session.UnmarshalText([]byte(plain))
}

func (s *Sealer) sealValue(p sealed.Purpose, v, subject string) (string, error) {
	why := problem(v)
	if v == "" {
		why = "it is empty"
	}
	if why != "" {
		return "", fmt.Errorf("affinity: seal %s: %s: %s", p, quote(v), why)
	}
	return s.seal(p, v, subject)
}

func (s *Sealer) seal(p sealed.Purpose, v, subject string) (string, error) {
	switch {
	case !s.made():
		return "", fmt.Errorf("affinity: seal %s: the sealer was not made by NewSealer", p)
	case subject == "":
		// Else all whose name was lost on the way would share what they have.
		return "", fmt.Errorf("affinity: seal %s: the subject is empty", p)
	}
	return s.ring.Seal(p, v, subject, s.expiry()), nil
}

// expiry goes up in steps, so that a value keeps its form for a while.
func (s *Sealer) expiry() time.Time {
	step := int64(s.ttl / (8 * time.Second))
	at := time.Now().Add(s.ttl).Unix()
	return time.Unix(at-at%step, 0)
}

func (s *Sealer) openValue(p sealed.Purpose, text, subject string) (string, error) {
	v, err := s.open(p, text, subject)
	if err == nil && (v == "" || problem(v) != "") {
		err = openError(p, sealed.ErrForged) // by a program with the keys, and without the rules
	}
	if err != nil {
		return "", err
	}
	return v, nil
}

func (s *Sealer) open(p sealed.Purpose, text, subject string) (string, error) {
	if !s.made() || subject == "" {
		return "", openError(p, sealed.ErrForged)
	}
	v, err := s.ring.Open(p, text, subject, time.Now())
	if err != nil {
		return "", openError(p, err)
	}
	return v, nil
}

func openError(p sealed.Purpose, err error) error {
	return fmt.Errorf("affinity: open %s: %w", p, err)
}

func (s *Sealer) made() bool { return s != nil && len(s.ring) > 0 }
