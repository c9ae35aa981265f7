package stickybalancer_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/stickybalancer"
)

// Lists at random, with weights, drains and duplicates. The home leaves the list, the next
// one is asked for, and so on to the end: real calls go where Order says.
func TestCallsByKeyGoInTheOrderThatOrderGives(t *testing.T) {
	const seed = 11
	rnd := rand.New(rand.NewPCG(seed, 1))
	none := stickybalancer.Config{ReconnectWindow: -1, AbsentGrace: -1}
	for round := range 20 {
		inWorld(t, none, func(t *testing.T, w *world) {
			specs := randomList(w, rnd)
			for range 5 {
				key := fmt.Sprintf("user:%d", rnd.IntN(1_000_000))
				left := endpoints(specs...)
				for len(left) > 0 {
					order := stickybalancer.Order(key, left)
					t.Logf("seed %d round %d: %s of %v", seed, round, key, left)
					w.resolver.CC().UpdateState(resolver.State{Endpoints: left})
					time.Sleep(time.Second) // fake: they connect
					w.reaches(address(order[0]), affinity.WithKey(t.Context(), key))
					// All that stand for the home, or share its address, leave with it.
					home := endpointsmeta.FromEndpoint(order[0]).ID
					left = slices.DeleteFunc(slices.Clone(left), func(ep resolver.Endpoint) bool {
						return endpointsmeta.FromEndpoint(ep).ID == home || address(ep) == address(order[0])
					})
				}
			}
		})
	}
}

func address(ep resolver.Endpoint) string { return ep.Addresses[0].Addr }

// randomList returns the specs of some servers, which are up.
func randomList(w *world, rnd *rand.Rand) (specs []string) {
	n := 1 + rnd.IntN(7)
	drains := []float64{0, 0.3, 1}[rnd.IntN(3)]
	for i := range n {
		w.start(fmt.Sprintf("addr-%d", i))
		spec := fmt.Sprintf("game-%d@addr-%d", i, i)
		if rnd.IntN(2) == 0 {
			spec = fmt.Sprintf("game-%d@addr-%d*%d", i, i, rnd.IntN(1000))
		}
		if i > 0 && rnd.IntN(5) == 0 { // a duplicate
			switch rnd.IntN(3) {
			case 0:
				spec = fmt.Sprintf("game-%d@addr-%d", i, i-1)
			case 1:
				spec = fmt.Sprintf("game-%d@addr-%d", i-1, i)
			case 2:
				spec = fmt.Sprintf("game-%d@addr-%d#%d", i-1, i, i)
			}
		}
		if rnd.Float64() < drains {
			spec += "!"
		}
		specs = append(specs, spec)
	}
	rnd.Shuffle(n, func(i, j int) { specs[i], specs[j] = specs[j], specs[i] })
	return specs
}

func TestOrderHasEachServerOnceAsThePolicyDoes(t *testing.T) {
	for name, tc := range map[string]struct {
		list []resolver.Endpoint
		want []string // id at address, in any order
	}{
		"none":                       {nil, []string{}},
		"without metadata":           {[]resolver.Endpoint{{Addresses: []resolver.Address{{Addr: "h:1"}}}}, []string{"h:1@h:1"}},
		"without an address":         {append(endpoints("a@1"), resolver.Endpoint{}), []string{"a@1"}},
		"an id twice":                {endpoints("a@2", "a@1", "a@3", "b@4"), []string{"a@1", "b@4"}},
		"an id twice, one newer":     {endpoints("a@1", "a@2#5", "b@4"), []string{"a@2", "b@4"}},
		"an address twice":           {endpoints("b@1", "a@1", "c@2"), []string{"a@1", "c@2"}},
		"one that says so, and ends": {endpoints("a@1!", "b@2!"), []string{"a@1", "b@2"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := []string{}
			for _, ep := range stickybalancer.Order("user:42", tc.list) {
				got = append(got, endpointsmeta.FromEndpoint(ep).ID+"@"+address(ep))
			}
			require.ElementsMatch(t, tc.want, got)
		})
	}
}

func TestWhoDrainsComesLastInOrder(t *testing.T) {
	for i := range 100 {
		order := stickybalancer.Order(fmt.Sprintf("user:%d", i), endpoints("a!", "b", "c!", "d"))
		for n, ep := range order {
			require.Equal(t, n >= 2, endpointsmeta.FromEndpoint(ep).Draining)
		}
	}
}

func TestAnEmptyKeyHasNoHome(t *testing.T) {
	require.Nil(t, stickybalancer.Order("", endpoints("a", "b")))
}

func TestOrderLeavesTheListAsItIs(t *testing.T) {
	list := endpoints("c", "a", "b")
	stickybalancer.Order("user:42", list)
	require.Equal(t, "c", address(list[0]))
	require.Equal(t, "a", address(list[1]))
}
