package stickybalancer

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/serviceconfig"

	"github.com/homing-grpc/homing/affinity"
)

// Defaults of [Config].
const (
	DefaultReconnectWindow = 3 * time.Second
	DefaultAbsentGrace     = 30 * time.Second
)

// Values of [Config.Connect].
const (
	ConnectEager = "EAGER"
	ConnectLazy  = "LAZY"
)

// Config is the configuration of the policy, the JSON of a service config as a
// Go struct. The zero value of each field is its default. Config does not check
// itself: the JSON is checked where a channel is made, so that a wrong value is
// an error of [google.golang.org/grpc.NewClient] that names the field.
type Config struct {
	// ReconnectWindow is how long a call waits for the server that it belongs
	// to, counted from the moment that server was lost. Default 3s; a negative
	// value means not at all. JSON: "reconnectWindow", a duration like "3s".
	ReconnectWindow time.Duration

	// AbsentGrace is how long a server keeps what it has after the resolver's
	// list has lost it, while its connection is READY. Default 30s; a negative
	// value means not at all. JSON: "absentGrace".
	AbsentGrace time.Duration

	// MaxLoadFactor bounds the load of a key's home. Above 1, a home that has
	// that many times its share of the calls that this channel has in flight
	// passes further calls by key on, to the next server in the key's order, in
	// time that grows with the number of servers. Calls that name a server, or
	// have lost it, are not passed on. Default 0: off. JSON: "maxLoadFactor".
	MaxLoadFactor float64

	// IDHeader and KeyHeader name the outgoing metadata that is honoured when
	// the context holds no affinity. Defaults [affinity.IDHeader] and
	// [affinity.KeyHeader]; "-" turns one off. JSON: "idHeader", "keyHeader",
	// where "" turns one off.
	IDHeader, KeyHeader string

	// Zone makes calls without affinity prefer this zone while it has READY
	// servers. Default "": no preference. JSON: "zone".
	Zone string

	// Connect is [ConnectEager], the default, to connect to every endpoint at
	// once, or [ConnectLazy], to connect to one when it is first picked.
	// JSON: "connect".
	Connect string

	// SubsetSize, when positive, lets calls without affinity use only that
	// many endpoints, a choice that differs from channel to channel (gRFC A68).
	// Default 0: all. JSON: "subsetSize".
	SubsetSize int
}

// MarshalJSON returns the policy's own part of a service config, for merging
// with method, retry and health configs. It never fails.
func (c Config) MarshalJSON() ([]byte, error) {
	o := make(map[string]any)
	putDuration := func(name string, d time.Duration) {
		if d != 0 {
			o[name] = formatDuration(max(d, 0))
		}
	}
	putString := func(name, s string) {
		if s != "" {
			o[name] = s
		}
	}
	putHeader := func(name, s string) {
		if s == "-" {
			o[name] = ""
		} else {
			putString(name, s)
		}
	}
	putDuration("reconnectWindow", c.ReconnectWindow)
	putDuration("absentGrace", c.AbsentGrace)
	switch f := c.MaxLoadFactor; {
	case math.IsNaN(f) || math.IsInf(f, 0): // not JSON; as a string it is refused by name
		o["maxLoadFactor"] = strconv.FormatFloat(f, 'g', -1, 64)
	case f != 0:
		o["maxLoadFactor"] = f
	}
	putHeader("idHeader", c.IDHeader)
	putHeader("keyHeader", c.KeyHeader)
	putString("zone", c.Zone)
	putString("connect", c.Connect)
	if c.SubsetSize != 0 {
		o["subsetSize"] = c.SubsetSize
	}
	return json.Marshal(o)
}

// ServiceConfig returns a whole service config that selects the policy, for
// [google.golang.org/grpc.WithDefaultServiceConfig].
func (c Config) ServiceConfig() string {
	b, _ := json.Marshal(map[string]any{
		"loadBalancingConfig": []any{map[string]any{Name: c}},
	}) // cannot fail: MarshalJSON does not
	return string(b)
}

// formatDuration writes d as protobuf's JSON does, which every gRPC reads:
// seconds with at most nine decimals.
func formatDuration(d time.Duration) string {
	s := fmt.Sprintf("%d.%09d", d/time.Second, d%time.Second)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".") + "s"
}

// lbConfig is a checked Config with its defaults filled in. It is immutable.
type lbConfig struct {
	serviceconfig.LoadBalancingConfig

	reconnectWindow time.Duration
	absentGrace     time.Duration
	maxLoadFactor   float64
	idHeader        string // "" is off
	keyHeader       string
	zone            string
	lazy            bool
	subsetSize      int
}

// values is the part of an lbConfig that can be compared.
type values struct {
	window, grace       time.Duration
	factor              float64
	idHeader, keyHeader string
	zone                string
	lazy                bool
	subset              int
}

// foreign reports whether a server of that zone is for when there is none of the own.
func (c *lbConfig) foreign(zone string) bool { return c.zone != "" && zone != c.zone }

func (c *lbConfig) values() values {
	return values{c.reconnectWindow, c.absentGrace, c.maxLoadFactor, c.idHeader, c.keyHeader, c.zone, c.lazy, c.subsetSize}
}

// defaultHeaders reports whether the headers are those that package affinity
// stamps, so that its word on their absence can be taken.
func (c *lbConfig) defaultHeaders() bool {
	return (c.idHeader == "" || c.idHeader == affinity.IDHeader) &&
		(c.keyHeader == "" || c.keyHeader == affinity.KeyHeader)
}

func parseConfig(js json.RawMessage) (*lbConfig, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(js, &fields); err != nil {
		return nil, fmt.Errorf("%s: config must be a JSON object, got %s", Name, shorten(js))
	}
	c := &lbConfig{
		reconnectWindow: DefaultReconnectWindow,
		absentGrace:     DefaultAbsentGrace,
		idHeader:        affinity.IDHeader,
		keyHeader:       affinity.KeyHeader,
	}
	connect := ConnectEager
	for _, f := range []struct {
		name, want string
		into       any
		ok         func() bool
	}{
		{"reconnectWindow", `a duration of 0 or more, like "3s"`, (*duration)(&c.reconnectWindow), nil},
		{"absentGrace", `a duration of 0 or more, like "30s"`, (*duration)(&c.absentGrace), nil},
		{"maxLoadFactor", "0 (off) or a number above 1", &c.maxLoadFactor,
			func() bool { return c.maxLoadFactor == 0 || c.maxLoadFactor > 1 }},
		{"idHeader", headerWant, &c.idHeader, func() bool { return lowerHeader(&c.idHeader) }},
		{"keyHeader", headerWant, &c.keyHeader, func() bool { return lowerHeader(&c.keyHeader) }},
		{"zone", "a string", &c.zone, nil},
		{"connect", `"EAGER" or "LAZY"`, &connect,
			func() bool { return connect == ConnectEager || connect == ConnectLazy }},
		{"subsetSize", "a whole number of 0 or more", &c.subsetSize,
			func() bool { return c.subsetSize >= 0 && c.subsetSize <= math.MaxInt32 }},
	} {
		js, ok := fields[f.name]
		if !ok || string(js) == "null" {
			continue
		}
		if err := json.Unmarshal(js, f.into); err != nil || (f.ok != nil && !f.ok()) {
			return nil, fmt.Errorf("%s: %s must be %s, got %s", Name, f.name, f.want, shorten(js))
		}
	}
	if c.idHeader != "" && c.idHeader == c.keyHeader {
		return nil, fmt.Errorf("%s: keyHeader must differ from idHeader, got %q for both", Name, c.idHeader)
	}
	c.lazy = connect == ConnectLazy
	return c, nil
}

type duration time.Duration

func (d *duration) UnmarshalJSON(js []byte) error {
	var s string
	if err := json.Unmarshal(js, &s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	if err == nil && v < 0 {
		err = fmt.Errorf("negative duration %q", s)
	}
	*d = duration(v)
	return err
}

const headerWant = `a metadata key of letters, digits, "-", "_" and "." that does not end in "-bin" or begin with "grpc-", or "" for off`

// lowerHeader lower-cases *h, as gRPC does with every key, and reports whether
// it can name plain-text metadata.
func lowerHeader(h *string) bool {
	*h = strings.ToLower(*h)
	if strings.HasSuffix(*h, "-bin") || strings.HasPrefix(*h, "grpc-") {
		return false
	}
	for i := range len(*h) {
		switch c := (*h)[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

func shorten(js []byte) string {
	const limit = 80
	if len(js) > limit {
		return string(js[:limit]) + "…"
	}
	return string(js)
}
