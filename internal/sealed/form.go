// Package sealed is a value that callers carry about and cannot read, forge or pass on:
// printable ASCII, good for one purpose and one subject until it expires.
//
//	text  = "hs1." base64url(names) "." base64url(body)
//	names = 1 to 4 times: fingerprint of a key (4 bytes), name by that key (16 bytes)
//	body  = expiry in Unix seconds, big-endian (8 bytes), ciphertext, MAC (32 bytes)
//
// The first name is by the key that sealed. Of a secret, HKDF-SHA256 without a salt
// makes "homing sealed v1 fingerprint" (4 bytes) and the keys "homing sealed v1 name",
// "… encrypt" and "… mac" (32 bytes each). H is HMAC-SHA256 over fields, each after its
// length as 8 bytes, big-endian:
//
//	name       = first 16 bytes of H(name key; purpose, subject, value)
//	ciphertext = AES-256-CTR(encrypt key; IV = first name; value)
//	MAC        = H(mac key; purpose, subject, names, expiry, ciphertext)
//
// The IV comes from the value, so one IV never meets two values, and sealing needs no
// randomness. Names let a client that holds no key see whether two sealed ids are the
// same server for the same subject, which it has to: ids are renewed before they expire,
// and a session must not take that for a move. There is a name for every key, so that
// the old and the new form of an id can be compared while keys are rotated.
package sealed

import (
	"encoding/base64"
	"encoding/binary"
	"strings"
	"time"
)

const (
	// MaxKeys is how many keys there may be at a time.
	MaxKeys = 4

	// MaxValue and MaxSession are the most bytes of what is sealed.
	MaxValue   = 256
	MaxSession = 16 << 10

	prefix = "hs1."

	fingerprintSize = 4
	nameSize        = 16
	entrySize       = fingerprintSize + nameSize
	expirySize      = 8
	macSize         = 32
)

// encoding is strict: a value has one text.
var encoding = base64.RawURLEncoding.Strict()

// maxText is the length of the longest text for a value of that many bytes.
func maxText(value int) int {
	return len(prefix) + encoding.EncodedLen(MaxKeys*entrySize) + 1 + encoding.EncodedLen(expirySize+value+macSize)
}

// parts are those of a text, unchecked.
type parts struct {
	names  []byte // one or more entries
	expiry []byte
	cipher []byte
	mac    []byte
}

// parse takes a text apart that seals at most so many bytes.
func parse(text string, value int) (p parts, ok bool) {
	if len(text) > maxText(value) {
		return p, false
	}
	names, body, ok := cut(text)
	if !ok {
		return p, false
	}
	if p.names, ok = decode(names); !ok || len(p.names) == 0 || len(p.names)%entrySize != 0 || len(p.names) > MaxKeys*entrySize {
		return p, false
	}
	b, ok := decode(body)
	if !ok || len(b) <= expirySize+macSize {
		return p, false
	}
	end := len(b) - macSize
	p.expiry, p.cipher, p.mac = b[:expirySize], b[expirySize:end], b[end:]
	return p, true
}

func cut(text string) (names, body string, ok bool) {
	rest, ok := strings.CutPrefix(text, prefix)
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, ".")
}

func decode(s string) ([]byte, bool) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, false // base64 would skip that
	}
	b, err := encoding.DecodeString(s)
	return b, err == nil
}

// Like reports whether text has the form of a sealed id or key.
func Like(text string) bool {
	_, ok := parse(text, MaxValue)
	return ok
}

// Same reports whether a and b are two texts of one id for one subject. Nothing is
// proven by that: whoever sent them may have made them up.
func Same(a, b string) bool {
	if !strings.HasPrefix(a, prefix) || !strings.HasPrefix(b, prefix) {
		return false
	}
	p, ok := parse(a, MaxValue)
	if !ok {
		return false
	}
	q, ok := parse(b, MaxValue)
	if !ok {
		return false
	}
	for x := range entries(p.names) {
		for y := range entries(q.names) {
			if string(x[:fingerprintSize]) == string(y[:fingerprintSize]) {
				return string(x) == string(y)
			}
		}
	}
	return false
}

// entries yields what each key says.
func entries(names []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(names) >= entrySize && yield(names[:entrySize]) {
			names = names[entrySize:]
		}
	}
}

// SaysExpired reports whether text says of an id or key that it has expired. That is
// not proven, and need not be where such a text counts for nothing anyway.
func SaysExpired(text string, now time.Time) bool {
	p, ok := parse(text, MaxValue)
	return ok && over(p.expiry, now)
}

func over(expiry []byte, now time.Time) bool {
	return now.Unix() >= int64(binary.BigEndian.Uint64(expiry))
}
