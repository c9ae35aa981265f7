package sealed

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Purpose keeps what is sealed for one thing from being used for another.
type Purpose string

// The purposes.
const (
	ID      Purpose = "id"
	Key     Purpose = "key"
	Session Purpose = "session"
)

func (p Purpose) maxValue() int {
	if p == Session {
		return MaxSession
	}
	return MaxValue
}

// Errors of [Ring.Open]. The first one is all that is said of a text that is not good,
// whatever it is that is wrong with it.
var (
	ErrForged  = errors.New("it is damaged, forged, or sealed for another")
	ErrExpired = errors.New("it has expired")
)

// minSecret is the size of the hash: a longer secret is no better, a shorter one worse.
const minSecret = sha256.Size

// Ring are keys. The first one seals, all of them open. It is immutable.
type Ring []*key

// key is what is made of a secret.
type key struct {
	fingerprint [fingerprintSize]byte // is public
	*secrets                          // behind a second pointer, where fmt never looks
}

type secrets struct {
	name, mac []byte
	block     cipher.Block
}

// NewRing makes keys of secrets, which it does not keep.
func NewRing(secrets ...[]byte) (Ring, error) {
	if n := len(secrets); n < 1 || n > MaxKeys {
		return nil, fmt.Errorf("there are %d keys, must be 1 to %d", n, MaxKeys)
	}
	var r Ring
	for i, secret := range secrets {
		if len(secret) < minSecret {
			return nil, fmt.Errorf("key %d has %d bytes, must have at least %d", i+1, len(secret), minSecret)
		}
		k, err := newKey(secret)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		for j, other := range r {
			if other.fingerprint == k.fingerprint {
				return nil, fmt.Errorf("keys %d and %d are the same, or look the same by their fingerprints", j+1, i+1)
			}
		}
		r = append(r, k)
	}
	return r, nil
}

func newKey(secret []byte) (*key, error) {
	var made [4][]byte
	for i, use := range []string{"fingerprint", "name", "encrypt", "mac"} {
		size := sha256.Size
		if use == "fingerprint" {
			size = fingerprintSize
		}
		var err error
		if made[i], err = hkdf.Key(sha256.New, secret, nil, "homing sealed v1 "+use, size); err != nil {
			return nil, err
		}
	}
	block, err := aes.NewCipher(made[2])
	if err != nil {
		return nil, err
	}
	return &key{[fingerprintSize]byte(made[0]), &secrets{name: made[1], block: block, mac: made[3]}}, nil
}

// Seal seals a value, which must not be empty or longer than the purpose allows. It has
// expired from expiry on, in whole seconds.
func (r Ring) Seal(p Purpose, value, subject string, expiry time.Time) string {
	named := r[:1]
	if p == ID {
		named = r // only ids are compared
	}
	names := make([]byte, 0, MaxKeys*entrySize)
	for _, k := range named {
		names = append(names, k.fingerprint[:]...)
		names = append(names, sum(k.name, p, subject, []byte(value))[:nameSize]...)
	}
	body := binary.BigEndian.AppendUint64(make([]byte, 0, expirySize+len(value)+macSize), uint64(expiry.Unix()))
	body = append(body, value...)
	when, text := body[:expirySize], body[expirySize:]
	r[0].crypt(text, names)
	body = append(body, sum(r[0].mac, p, subject, names, when, text)...)

	out := encoding.AppendEncode([]byte(prefix), names)
	return string(encoding.AppendEncode(append(out, '.'), body))
}

// Open returns what was sealed for this purpose and subject.
func (r Ring) Open(p Purpose, text, subject string, now time.Time) (string, error) {
	t, ok := parse(text, p.maxValue())
	if !ok {
		return "", ErrForged
	}
	k := r.find([fingerprintSize]byte(t.names))
	if k == nil || !hmac.Equal(t.mac, sum(k.mac, p, subject, t.names, t.expiry, t.cipher)) {
		return "", ErrForged
	}
	if over(t.expiry, now) {
		return "", ErrExpired
	}
	k.crypt(t.cipher, t.names)
	return string(t.cipher), nil
}

func (r Ring) find(fingerprint [fingerprintSize]byte) *key {
	for _, k := range r {
		if k.fingerprint == fingerprint {
			return k
		}
	}
	return nil
}

// crypt encrypts or decrypts text in place. names begin with those of k.
func (k *key) crypt(text, names []byte) {
	cipher.NewCTR(k.block, names[fingerprintSize:entrySize]).XORKeyStream(text, text)
}

// sum is the HMAC of fields that cannot run into each other.
func sum(key []byte, p Purpose, subject string, fields ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	add := func(field []byte) {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(field)))
		h.Write(size[:])
		h.Write(field)
	}
	add([]byte(p))
	add([]byte(subject))
	for _, f := range fields {
		add(f)
	}
	return h.Sum(nil)
}
