package stickybalancer

import (
	"slices"

	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/internal/callctx"
)

// Order returns the servers in the order in which they are home to key: the first is where
// calls by that key go, and each is the home once all before it have left. Those that
// drain come last, for they are homes only when no other is known. The order of the list
// does not matter, and is not changed.
//
// The list is one as a resolver reports it, with what [endpointsmeta.Set] has attached. Of
// endpoints that stand for one server, or share an address, the one that the policy uses is
// in the result, and the others are not. An empty key is none, and has no home: the result
// is nil.
//
// It is the policy's own code, so every client agrees with it that knows the same list. What
// only a channel knows is not in it: servers that cannot be reached or whose health check
// says no, those that are kept after the list has lost them, maxLoadFactor, and where a
// session lives. With a server's id as the key, it is the order in which others take over
// from that server the calls that have its id and no key.
//
// It takes time to sort the list; a picker does not use it.
func Order(key string, endpoints []resolver.Endpoint) []resolver.Endpoint {
	if key == "" {
		return nil
	}
	slot := slotOf(callctx.Hash(key))
	type place struct {
		rank
		draining bool
		endpoint resolver.Endpoint
	}
	var places []place
	for _, l := range distinct(endpoints, func(string, ...any) {}) {
		r := rank{draw(slot, callctx.Hash(l.meta.ID)), max(l.meta.Weight, 1), l.meta.ID}
		places = append(places, place{r, l.meta.Draining, l.endpoint})
	}
	slices.SortFunc(places, func(a, b place) int {
		first := a.before(b.rank)
		if a.draining != b.draining {
			first = b.draining
		}
		if first {
			return -1
		}
		return 1
	})
	order := make([]resolver.Endpoint, len(places))
	for i, p := range places {
		order[i] = p.endpoint
	}
	return order
}
