package stickybalancer

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta"
)

func addrs(as ...string) (out []resolver.Address) {
	for _, a := range as {
		out = append(out, resolver.Address{Addr: a})
	}
	return out
}

// chosen returns which endpoint stands for each id.
func chosen(eps []resolver.Endpoint) map[string]string {
	out := map[string]string{}
	for _, l := range (&policy{}).unique(eps) {
		out[l.meta.ID] = l.address()
	}
	return out
}

func TestUniqueDoesNotDependOnTheOrder(t *testing.T) {
	for _, tc := range []struct {
		name string
		eps  []resolver.Endpoint
		want map[string]string
	}{
		{"one each", []resolver.Endpoint{ep("a"), ep("b")}, map[string]string{"a": "a", "b": "b"}},
		{"the same twice", []resolver.Endpoint{ep("a"), ep("a")}, map[string]string{"a": "a"}},
		{"an id twice", []resolver.Endpoint{at("a", "2"), at("a", "1"), at("a", "3")}, map[string]string{"a": "1"}},
		{"an id twice, one newer", []resolver.Endpoint{at("a", "2", incarnation(1)), at("a", "1"), at("a", "3")}, map[string]string{"a": "2"}},
		{"an address twice", []resolver.Endpoint{at("b", "1"), at("a", "1"), at("c", "1")}, map[string]string{"a": "1"}},
		{"without ids", []resolver.Endpoint{{Addresses: addrs("1")}, {Addresses: addrs("2")}}, map[string]string{"1": "1", "2": "2"}},
		{"without addresses", []resolver.Endpoint{{}, ep("a")}, map[string]string{"a": "a"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for range 20 {
				rand.Shuffle(len(tc.eps), func(i, j int) { tc.eps[i], tc.eps[j] = tc.eps[j], tc.eps[i] })
				require.Equal(t, tc.want, chosen(tc.eps))
			}
		})
	}
}

func TestUniqueNamesNobodyTwice(t *testing.T) {
	rnd := rand.New(rand.NewPCG(19, 20))
	for range 2000 {
		var eps []resolver.Endpoint
		for range 1 + rnd.IntN(8) {
			eps = append(eps, at(string(rune('a'+rnd.IntN(4))), string(rune('1'+rnd.IntN(4))), incarnation(rnd.Int64N(3))))
		}
		want := chosen(eps)
		ids, ads := map[string]bool{}, map[string]bool{}
		for id, addr := range want {
			require.False(t, ids[id] || ads[addr], "%v", want)
			ids[id], ads[addr] = true, true
		}
		require.NotEmpty(t, want)
		rnd.Shuffle(len(eps), func(i, j int) { eps[i], eps[j] = eps[j], eps[i] })
		require.Equal(t, want, chosen(eps))
	}
}

func TestAddressKey(t *testing.T) {
	key := func(as ...string) string { return addressKey(resolver.Endpoint{Addresses: addrs(as...)}) }
	require.Equal(t, key("1", "2"), key("2", "1"))
	require.Equal(t, key("1", "2"), key("2", "1", "2"))
	require.NotEqual(t, key("1", "2"), key("1"))
	require.NotEqual(t, key("12"), key("1", "2"))
	require.Equal(t, key("1"), key("1", "1"))
}

type comparedBy struct{}

func TestSameList(t *testing.T) {
	list := func() []resolver.Endpoint { return []resolver.Endpoint{ep("a", weighs(2)), ep("b")} }
	require.True(t, sameList(nil, nil))
	require.True(t, sameList(list(), list()))
	for name, change := range map[string]func([]resolver.Endpoint) []resolver.Endpoint{
		"shorter": func(l []resolver.Endpoint) []resolver.Endpoint { return l[:1] },
		"order":   func(l []resolver.Endpoint) []resolver.Endpoint { slices.Reverse(l); return l },
		"meta":    func(l []resolver.Endpoint) []resolver.Endpoint { l[0] = ep("a", weighs(3)); return l },
		"other attribute": func(l []resolver.Endpoint) []resolver.Endpoint {
			l[0].Attributes = l[0].Attributes.WithValue(comparedBy{}, 1)
			return l
		},
		"address":     func(l []resolver.Endpoint) []resolver.Endpoint { l[0].Addresses[0].Addr = "c"; return l },
		"server name": func(l []resolver.Endpoint) []resolver.Endpoint { l[0].Addresses[0].ServerName = "c"; return l },
		"address attribute": func(l []resolver.Endpoint) []resolver.Endpoint {
			l[0].Addresses[0].Attributes = attributes.New(comparedBy{}, 1)
			return l
		},
		"one address more": func(l []resolver.Endpoint) []resolver.Endpoint {
			l[0].Addresses = append(l[0].Addresses, addrs("c")...)
			return l
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.False(t, sameList(list(), change(list())))
		})
	}
	other := list()
	//lint:ignore SA1019 it must be ignored while it exists
	other[0].Addresses[0].BalancerAttributes = attributes.New(comparedBy{}, 1)
	require.True(t, sameList(list(), other))
}

func TestTheEndpointsOfADualStackServerAreOneServer(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		dual := endpointsmeta.Set(resolver.Endpoint{Addresses: addrs("10.0.0.1:1", "[::1]:1")}, endpointsmeta.Meta{ID: "a"})
		d.list(dual, ep("b"))
		d.up("10.0.0.1:1", "b")
		require.Equal(t, "10.0.0.1:1", d.server(must("a")))

		// The order of its addresses, or one more, reconnects nothing.
		made := d.made()
		d.list(endpointsmeta.Set(resolver.Endpoint{Addresses: addrs("[::1]:1", "10.0.0.1:1", "10.0.0.2:1")},
			endpointsmeta.Meta{ID: "a"}), ep("b"))
		require.Equal(t, "10.0.0.1:1", d.server(must("a")))
		require.Equal(t, made, d.made())

		// Without the address that is connected, it is elsewhere.
		d.list(endpointsmeta.Set(resolver.Endpoint{Addresses: addrs("[::1]:1")}, endpointsmeta.Meta{ID: "a"}), ep("b"))
		require.Equal(t, queued, d.pick(must("a")))
		require.Nil(t, d.open("10.0.0.1:1"))
		d.up("[::1]:1")
		require.Equal(t, "[::1]:1", d.server(must("a")))
	})
}
