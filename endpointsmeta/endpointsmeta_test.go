package endpointsmeta_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta"
)

func endpoint(addrs ...string) resolver.Endpoint {
	var ep resolver.Endpoint
	for _, a := range addrs {
		ep.Addresses = append(ep.Addresses, resolver.Address{Addr: a})
	}
	return ep
}

var full = endpointsmeta.Meta{
	ID: "game-1", Incarnation: 7, Weight: 3, Zone: "eu-1", Draining: true, Labels: map[string]string{"build": "42"},
}

func TestFromEndpointReturnsWhatWasSet(t *testing.T) {
	require.Equal(t, full, endpointsmeta.FromEndpoint(endpointsmeta.Set(endpoint("a:1"), full)))
}

func TestWithoutMetadataTheIDIsTheFirstAddress(t *testing.T) {
	require.Equal(t, endpointsmeta.Meta{ID: "a:1"}, endpointsmeta.FromEndpoint(endpoint("a:1", "b:1")))
	require.Equal(t, endpointsmeta.Meta{ID: "a:1", Weight: 2},
		endpointsmeta.FromEndpoint(endpointsmeta.Set(endpoint("a:1"), endpointsmeta.Meta{Weight: 2})))
	require.Equal(t, endpointsmeta.Meta{}, endpointsmeta.FromEndpoint(resolver.Endpoint{}))
}

func TestSetLeavesItsArgumentAlone(t *testing.T) {
	ep := endpoint("a:1")
	endpointsmeta.Set(ep, full)
	require.Nil(t, ep.Attributes)
}

// Fact 12 of the design: decoded metadata is a map, and comparing it panics.
func TestAttributesThatHoldAMetaCanBeCompared(t *testing.T) {
	for name, change := range map[string]func(*endpointsmeta.Meta){
		"ID":          func(m *endpointsmeta.Meta) { m.ID = "x" },
		"Incarnation": func(m *endpointsmeta.Meta) { m.Incarnation++ },
		"Weight":      func(m *endpointsmeta.Meta) { m.Weight++ },
		"Zone":        func(m *endpointsmeta.Meta) { m.Zone = "x" },
		"Draining":    func(m *endpointsmeta.Meta) { m.Draining = false },
		"Labels":      func(m *endpointsmeta.Meta) { m.Labels = map[string]string{"build": "43"} },
	} {
		t.Run(name, func(t *testing.T) {
			same, other := full, full
			same.Labels = map[string]string{"build": "42"}
			change(&other)
			a := endpointsmeta.Set(endpoint("a:1"), full).Attributes
			require.True(t, a.Equal(endpointsmeta.Set(endpoint("a:1"), same).Attributes))
			require.False(t, a.Equal(endpointsmeta.Set(endpoint("a:1"), other).Attributes))
		})
	}
	require.Equal(t, 6, reflect.TypeFor[endpointsmeta.Meta]().NumField(), "a new field must be compared too")
}

var decodeTable = []struct {
	json string
	want endpointsmeta.Meta
	err  string // a part of it
}{
	{json: `null`},
	{json: `{}`},
	{json: `"game-1"`, want: endpointsmeta.Meta{ID: "game-1"}},
	{json: `{"id":"game-1","incarnation":7,"weight":3,"zone":"eu-1","draining":true,"labels":{"build":"42"}}`, want: full},
	{json: `{"id":"a","later":{"release":1}}`, want: endpointsmeta.Meta{ID: "a"}},
	{json: `{"id":null,"labels":null}`},
	{json: `7`, err: "metadata must be"},
	{json: `true`, err: "metadata must be"},
	{json: `[]`, err: "metadata must be"},
	{json: `{"id":7}`, err: `id must be a string, got "7"`},
	{json: `{"zone":[]}`, err: "zone must be"},
	{json: `{"draining":"yes"}`, err: "draining must be"},
	{json: `{"weight":"3"}`, err: "weight must be"},
	{json: `{"weight":-1}`, err: "weight must be a whole number from 0 to 4294967295, got -1"},
	{json: `{"weight":1.5}`, err: "weight must be"},
	{json: `{"weight":4294967296}`, err: "weight must be"},
	{json: `{"incarnation":-1}`, err: "incarnation must be"},
	{json: `{"incarnation":1e30}`, err: "incarnation must be"},
	{json: `{"labels":[]}`, err: "labels must be"},
	{json: `{"labels":{"k":1}}`, err: "labels: endpointsmeta: k must be a string"},
	{json: `{"id":"ü"}`, err: "id must be printable ASCII"},
	{json: `" a"`, err: "id must not begin or end with a space"},
	{json: fmt.Sprintf("%q", strings.Repeat("x", 257)), err: "id must be at most 256 bytes, got 257"},
}

func TestDecode(t *testing.T) {
	for _, c := range decodeTable {
		t.Run(c.json, func(t *testing.T) {
			var v any
			require.NoError(t, json.Unmarshal([]byte(c.json), &v))
			got, err := endpointsmeta.Decode(v)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				require.Zero(t, got)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func TestDecodeTakesAMetaThatWasNotThroughJSON(t *testing.T) {
	for _, v := range []any{full, &full} {
		got, err := endpointsmeta.Decode(v)
		require.NoError(t, err)
		require.Equal(t, full, got)
	}
	got, err := endpointsmeta.Decode((*endpointsmeta.Meta)(nil))
	require.NoError(t, err)
	require.Zero(t, got)
	_, err = endpointsmeta.Decode(endpointsmeta.Meta{ID: "\n"})
	require.ErrorContains(t, err, "id")
}

func FuzzDecode(f *testing.F) {
	for _, c := range decodeTable {
		f.Add([]byte(c.json))
	}
	f.Fuzz(func(t *testing.T, js []byte) {
		var v any
		if json.Unmarshal(js, &v) != nil {
			return
		}
		m, err := endpointsmeta.Decode(v)
		if err != nil {
			require.Zero(t, m)
			return
		}
		// What was accepted comes through etcd unchanged.
		again, err := json.Marshal(m)
		require.NoError(t, err)
		var w any
		require.NoError(t, json.Unmarshal(again, &w))
		n, err := endpointsmeta.Decode(w)
		require.NoError(t, err)
		require.True(t, m.Equal(n), "%+v became %+v", m, n)
	})
}

func ExampleSet() {
	ep := resolver.Endpoint{Addresses: []resolver.Address{{Addr: "10.0.0.7:443"}}}
	ep = endpointsmeta.Set(ep, endpointsmeta.Meta{ID: "game-1", Weight: 3})
	fmt.Println(endpointsmeta.FromEndpoint(ep).ID)
	// Output: game-1
}

func ExampleDecode() {
	var metadata any
	json.Unmarshal([]byte(`{"id":"game-1","zone":"eu-1"}`), &metadata)
	m, err := endpointsmeta.Decode(metadata)
	fmt.Println(m.ID, m.Zone, err)

	_, err = endpointsmeta.Decode(map[string]any{"weight": "heavy"})
	fmt.Println(err)
	// Output:
	// game-1 eu-1 <nil>
	// endpointsmeta: weight must be a number, got "heavy" (string)
}

// What a policy or a tool reads of an endpoint; without metadata its id is its address.
func ExampleFromEndpoint() {
	ep := resolver.Endpoint{Addresses: []resolver.Address{{Addr: "10.0.0.7:7000"}}}
	fmt.Println(endpointsmeta.FromEndpoint(ep).ID)
	fmt.Println(endpointsmeta.FromEndpoint(endpointsmeta.Set(ep, endpointsmeta.Meta{ID: "game-1"})).ID)
	// Output:
	// 10.0.0.7:7000
	// game-1
}
