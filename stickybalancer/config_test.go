package stickybalancer

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/homing-grpc/homing/affinity"
)

var defaultValues = values{
	window:    DefaultReconnectWindow,
	grace:     DefaultAbsentGrace,
	idHeader:  affinity.IDHeader,
	keyHeader: affinity.KeyHeader,
}

func TestParseConfigAccepts(t *testing.T) {
	for _, tc := range []struct {
		js   string
		want func(*values)
	}{
		{`{}`, func(*values) {}},
		{`{"somethingNew": [1, {"a": 2}], "ReconnectWindow": 7}`, func(*values) {}},
		{`{"reconnectWindow": null, "absentGrace": null, "maxLoadFactor": null, "idHeader": null,
		   "keyHeader": null, "zone": null, "connect": null, "subsetSize": null}`, func(*values) {}},

		{`{"reconnectWindow": "0s"}`, func(v *values) { v.window = 0 }},
		{`{"reconnectWindow": "1.5s"}`, func(v *values) { v.window = 1500 * time.Millisecond }},
		{`{"reconnectWindow": "0.000000001s"}`, func(v *values) { v.window = 1 }},
		{`{"reconnectWindow": "2m"}`, func(v *values) { v.window = 2 * time.Minute }},
		{`{"absentGrace": "0s"}`, func(v *values) { v.grace = 0 }},
		{`{"absentGrace": "3600s"}`, func(v *values) { v.grace = time.Hour }},

		{`{"maxLoadFactor": 0}`, func(*values) {}},
		{`{"maxLoadFactor": 1.25}`, func(v *values) { v.factor = 1.25 }},

		{`{"idHeader": "X-Server", "keyHeader": "X_User.Name9"}`, func(v *values) {
			v.idHeader, v.keyHeader = "x-server", "x_user.name9"
		}},
		{`{"idHeader": ""}`, func(v *values) { v.idHeader = "" }},
		{`{"idHeader": "", "keyHeader": ""}`, func(v *values) { v.idHeader, v.keyHeader = "", "" }},

		{`{"zone": "eu-1"}`, func(v *values) { v.zone = "eu-1" }},
		{`{"zone": ""}`, func(*values) {}},
		{`{"connect": "EAGER"}`, func(*values) {}},
		{`{"connect": "LAZY"}`, func(v *values) { v.lazy = true }},
		{`{"subsetSize": 0}`, func(*values) {}},
		{`{"subsetSize": 20}`, func(v *values) { v.subset = 20 }},
	} {
		t.Run(tc.js, func(t *testing.T) {
			want := defaultValues
			tc.want(&want)
			got, err := builder{}.ParseConfig([]byte(tc.js))
			require.NoError(t, err)
			require.Equal(t, want, got.(*lbConfig).values())
		})
	}
}

// refused are the fields of configs that must be refused, each with a part of
// its value that the error has to show.
var refused = []struct{ name, value, shows string }{
	{"reconnectWindow", `"soon"`, "soon"},
	{"reconnectWindow", `"-1s"`, "-1s"},
	{"reconnectWindow", `"-0.000000001s"`, "-0.000000001s"},
	{"reconnectWindow", `3`, "3"},
	{"reconnectWindow", `"3"`, "3"},
	{"reconnectWindow", `""`, `""`},
	{"reconnectWindow", `"99999999999s"`, "99999999999s"},
	{"reconnectWindow", `{}`, "{}"},
	{"absentGrace", `"3 s"`, "3 s"},
	{"absentGrace", `-3`, "-3"},
	{"absentGrace", `"-1s"`, "-1s"},

	{"maxLoadFactor", `1`, "1"},
	{"maxLoadFactor", `0.5`, "0.5"},
	{"maxLoadFactor", `-2`, "-2"},
	{"maxLoadFactor", `"2"`, `"2"`},
	{"maxLoadFactor", `1e999`, "1e999"},

	{"idHeader", `7`, "7"},
	{"idHeader", `"server-bin"`, "server-bin"},
	{"idHeader", `"Server-BIN"`, "Server-BIN"},
	{"idHeader", `"grpc-server"`, "grpc-server"},
	{"idHeader", `"GRPC-server"`, "GRPC-server"},
	{"idHeader", `"a header"`, "a header"},
	{"idHeader", `":path"`, ":path"},
	{"idHeader", `"a:b"`, "a:b"},
	{"idHeader", `"sérver"`, "sérver"},
	{"idHeader", `"a\u0000"`, `a\u0000`},
	{"keyHeader", `[]`, "[]"},
	{"keyHeader", `"key-bin"`, "key-bin"},
	{"keyHeader", `"grpc-key"`, "grpc-key"},
	{"keyHeader", `"affinity-id"`, "affinity-id"}, // is the default of idHeader
	{"keyHeader", `"Affinity-ID"`, "affinity-id"},

	{"zone", `1`, "1"},
	{"zone", `["eu"]`, `["eu"]`},
	{"connect", `"lazy"`, "lazy"},
	{"connect", `""`, `""`},
	{"connect", `true`, "true"},
	{"subsetSize", `-1`, "-1"},
	{"subsetSize", `1.5`, "1.5"},
	{"subsetSize", `"3"`, `"3"`},
	{"subsetSize", `4294967296`, "4294967296"},
	{"subsetSize", `99999999999999999999`, "99999999999999999999"},
}

func TestParseConfigRefusesByNameAndValue(t *testing.T) {
	for _, tc := range refused {
		t.Run(tc.name+"="+tc.value, func(t *testing.T) {
			got, err := builder{}.ParseConfig(fmt.Appendf(nil, `{%q: %s, "zone2": 1}`, tc.name, tc.value))
			require.ErrorContains(t, err, Name+": "+tc.name+" must ")
			require.ErrorContains(t, err, tc.shows)
			require.Nil(t, got)
		})
	}
}

func TestParseConfigRefusesWhatIsNoObject(t *testing.T) {
	for _, js := range []string{``, `[]`, `3`, `"{}"`, `{`, `{"zone": }`} {
		_, err := builder{}.ParseConfig([]byte(js))
		require.ErrorContains(t, err, Name+": config must be a JSON object", "%q", js)
	}
}

func TestParseConfigKeepsErrorsShort(t *testing.T) {
	_, err := builder{}.ParseConfig([]byte(`{"connect": "` + strings.Repeat("x", 100_000) + `"}`))
	require.ErrorContains(t, err, "connect")
	require.Less(t, len(err.Error()), 300)
}

func TestANewChannelRefusesAWrongValueByName(t *testing.T) {
	dial := func(serviceConfig string) error {
		conn, err := grpc.NewClient("dns:///localhost:1", grpc.WithDefaultServiceConfig(serviceConfig),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err == nil {
			conn.Close()
		}
		return err
	}
	for _, tc := range refused {
		js := fmt.Sprintf(`{"loadBalancingConfig": [{%q: {%q: %s}}]}`, Name, tc.name, tc.value)
		require.ErrorContains(t, dial(js), tc.name+" must ", js)
	}
	for _, tc := range []struct {
		cfg  Config
		name string
	}{
		{Config{MaxLoadFactor: math.NaN()}, "maxLoadFactor"},
		{Config{MaxLoadFactor: math.Inf(1)}, "maxLoadFactor"},
		{Config{MaxLoadFactor: math.Inf(-1)}, "maxLoadFactor"},
		{Config{MaxLoadFactor: 1}, "maxLoadFactor"},
		{Config{Connect: "maybe"}, "connect"},
		{Config{SubsetSize: -1}, "subsetSize"},
		{Config{IDHeader: "x-bin"}, "idHeader"},
		{Config{KeyHeader: "--\n"}, "keyHeader"},
		{Config{IDHeader: "same", KeyHeader: "SAME"}, "keyHeader"},
	} {
		require.ErrorContains(t, dial(tc.cfg.ServiceConfig()), tc.name+" must ", "%+v", tc.cfg)
	}
	require.NoError(t, dial(Config{}.ServiceConfig()))
}

func TestConfigJSON(t *testing.T) {
	for _, tc := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, `{}`},
		{Config{ReconnectWindow: -1, AbsentGrace: math.MinInt64}, `{"absentGrace":"0s","reconnectWindow":"0s"}`},
		{Config{ReconnectWindow: 1500 * time.Millisecond}, `{"reconnectWindow":"1.5s"}`},
		{Config{ReconnectWindow: 1}, `{"reconnectWindow":"0.000000001s"}`},
		{Config{ReconnectWindow: 10 * time.Minute, AbsentGrace: 24 * time.Hour}, `{"absentGrace":"86400s","reconnectWindow":"600s"}`},
		{Config{ReconnectWindow: math.MaxInt64}, `{"reconnectWindow":"9223372036.854775807s"}`},
		{Config{IDHeader: "-", KeyHeader: "x-user"}, `{"idHeader":"","keyHeader":"x-user"}`},
		{Config{MaxLoadFactor: 1.25, Zone: "eu", Connect: ConnectLazy, SubsetSize: 20},
			`{"connect":"LAZY","maxLoadFactor":1.25,"subsetSize":20,"zone":"eu"}`},
		{Config{MaxLoadFactor: math.NaN()}, `{"maxLoadFactor":"NaN"}`},
	} {
		got, err := json.Marshal(tc.cfg)
		require.NoError(t, err)
		require.JSONEq(t, tc.want, string(got))
		require.JSONEq(t, `{"loadBalancingConfig":[{"custom_round_robin":`+tc.want+`}]}`, tc.cfg.ServiceConfig())

		got, err = json.Marshal(map[string]any{"p": &tc.cfg})
		require.NoError(t, err)
		require.JSONEq(t, `{"p":`+tc.want+`}`, string(got), "through a pointer")
	}
}

func TestConfigSurvivesItsJSON(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	maybe := func() bool { return rnd.IntN(3) > 0 }
	// pick returns a field and what has to come out of it.
	duration := func(def time.Duration) (in, out time.Duration) {
		if !maybe() {
			return 0, def
		}
		if in = time.Duration(rnd.Uint64()) >> rnd.IntN(64); in == 0 {
			return 0, def
		}
		return in, max(in, 0)
	}
	header := func(def, own string) (in, out string) {
		switch rnd.IntN(4) {
		case 0:
			return "", def
		case 1:
			return "-", ""
		default:
			return strings.ToUpper(own) + "-Name", own + "-name"
		}
	}
	for range 5000 {
		c, want := Config{}, values{}
		c.ReconnectWindow, want.window = duration(DefaultReconnectWindow)
		c.AbsentGrace, want.grace = duration(DefaultAbsentGrace)
		if maybe() {
			c.MaxLoadFactor = 1 + math.Exp(rnd.NormFloat64()*10)
			want.factor = c.MaxLoadFactor
			if c.MaxLoadFactor == 1 {
				c.MaxLoadFactor, want.factor = 0, 0
			}
		}
		c.IDHeader, want.idHeader = header(affinity.IDHeader, "x-id")
		c.KeyHeader, want.keyHeader = header(affinity.KeyHeader, "x-key")
		if maybe() {
			c.Zone = string([]rune{rune(rnd.IntN(0xD7FF)), '"', '<', rune(rnd.IntN(128)), '\\'})
			want.zone = c.Zone
		}
		if maybe() {
			c.Connect, want.lazy = ConnectLazy, true
		}
		if maybe() {
			c.SubsetSize = rnd.IntN(math.MaxInt32)
			want.subset = c.SubsetSize
		}
		js, err := json.Marshal(c)
		require.NoError(t, err)
		got, err := parseConfig(js)
		require.NoError(t, err, "%s", js)
		require.Equal(t, want, got.values(), "%s", js)
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, tc := range refused {
		f.Add(fmt.Appendf(nil, `{%q: %s}`, tc.name, tc.value))
	}
	for _, js := range []string{``, `{}`, `null`, `[]`, `{"reconnectWindow":"3s","absentGrace":"1.5h","maxLoadFactor":2.5,` +
		`"idHeader":"X-A","keyHeader":"","zone":"é","connect":"LAZY","subsetSize":3}`} {
		f.Add([]byte(js))
	}
	f.Fuzz(func(t *testing.T, js []byte) {
		got, err := builder{}.ParseConfig(js)
		if err != nil {
			require.Nil(t, got)
			require.ErrorContains(t, err, Name+": ")
			return
		}
		c := got.(*lbConfig)
		require.GreaterOrEqual(t, c.reconnectWindow, time.Duration(0))
		require.GreaterOrEqual(t, c.absentGrace, time.Duration(0))
		require.True(t, c.maxLoadFactor == 0 || (c.maxLoadFactor > 1 && !math.IsInf(c.maxLoadFactor, 0)), "%v", c.maxLoadFactor)
		require.GreaterOrEqual(t, c.subsetSize, 0)
		for _, h := range []string{c.idHeader, c.keyHeader} {
			require.Equal(t, strings.ToLower(h), h)
			require.False(t, strings.HasSuffix(h, "-bin") || strings.HasPrefix(h, "grpc-"), h)
			require.NotContains(t, h, " ")
		}
		require.False(t, c.idHeader != "" && c.idHeader == c.keyHeader)

		// What was accepted says the same when it is written again.
		again := Config{
			ReconnectWindow: c.reconnectWindow, AbsentGrace: c.absentGrace, MaxLoadFactor: c.maxLoadFactor,
			IDHeader: c.idHeader, KeyHeader: c.keyHeader, Zone: c.zone, SubsetSize: c.subsetSize,
		}
		for _, d := range []*time.Duration{&again.ReconnectWindow, &again.AbsentGrace} {
			if *d == 0 {
				*d = -1
			}
		}
		for _, h := range []*string{&again.IDHeader, &again.KeyHeader} {
			if *h == "-" {
				t.Skip("a header named - cannot be written as a Config")
			}
			if *h == "" {
				*h = "-"
			}
		}
		if c.lazy {
			again.Connect = ConnectLazy
		}
		js2, err := json.Marshal(again)
		require.NoError(t, err)
		c2, err := parseConfig(js2)
		require.NoError(t, err)
		require.Equal(t, c.values(), c2.values())
	})
}
