package stickybalancer

import (
	"slices"
	"strings"

	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta"
)

// listed is one endpoint of the resolver's list, and what it says of itself.
type listed struct {
	endpoint resolver.Endpoint
	meta     endpointsmeta.Meta
}

// unique returns the endpoints that stand for one server each. Of two with one
// id the higher incarnation wins, then the smaller address; of two ids on one
// address, the smaller id. It says so when two different servers are meant; the
// same address twice is no news, as under round_robin.
func (p *policy) unique(endpoints []resolver.Endpoint) []listed {
	byID := make(map[string]int, len(endpoints))
	out := make([]listed, 0, len(endpoints))
	for _, ep := range endpoints {
		if len(ep.Addresses) == 0 {
			p.log.warningf("ignoring an endpoint without an address, of the id %q", endpointsmeta.FromEndpoint(ep).ID)
			continue
		}
		l := listed{ep, endpointsmeta.FromEndpoint(ep)}
		i, ok := byID[l.meta.ID]
		if !ok {
			byID[l.meta.ID] = len(out)
			out = append(out, l)
			continue
		}
		other := out[i]
		if l.beats(other) {
			out[i] = l
		}
		if !sameAddressSet(l.endpoint, other.endpoint) {
			p.log.warningf("id %q is claimed by two servers, at %s and %s: using the one at %s", l.meta.ID,
				other.address(), l.address(), out[i].address())
		}
	}
	byAddress := make(map[string]string, len(out))
	for _, l := range out {
		key := addressKey(l.endpoint)
		if id, ok := byAddress[key]; ok {
			p.log.warningf("address %s is claimed by two ids, %q and %q: using the smaller", l.address(), id, l.meta.ID)
			if id < l.meta.ID {
				continue
			}
		}
		byAddress[key] = l.meta.ID
	}
	return slices.DeleteFunc(out, func(l listed) bool { return byAddress[addressKey(l.endpoint)] != l.meta.ID })
}

func (l listed) address() string { return l.endpoint.Addresses[0].Addr }

func (l listed) beats(o listed) bool {
	if l.meta.Incarnation != o.meta.Incarnation {
		return l.meta.Incarnation > o.meta.Incarnation
	}
	if l.address() != o.address() {
		return l.address() < o.address()
	}
	return addressKey(l.endpoint) < addressKey(o.endpoint)
}

// addressKey names the set of ep's addresses, in whatever order they come.
func addressKey(ep resolver.Endpoint) string {
	if len(ep.Addresses) == 1 {
		return ep.Addresses[0].Addr
	}
	addrs := make([]string, len(ep.Addresses))
	for i, a := range ep.Addresses {
		addrs[i] = a.Addr
	}
	slices.Sort(addrs)
	return strings.Join(slices.Compact(addrs), "\x00")
}

func sameAddressSet(a, b resolver.Endpoint) bool { return addressKey(a) == addressKey(b) }

// sameList reports whether two lists say the same in the same order. Lists that
// come again mostly hold the same pointers, so those are compared first.
func sameList(a, b []resolver.Endpoint) bool {
	return len(a) == len(b) && slices.EqualFunc(a, b, sameEndpoint)
}

func sameEndpoint(a, b resolver.Endpoint) bool {
	return sameAttributes(a.Attributes, b.Attributes) && sameAddresses(a, b)
}

// sameAddresses reports whether pick_first would see no difference. It ignores
// the deprecated BalancerAttributes, and so does pick_first.
func sameAddresses(a, b resolver.Endpoint) bool {
	return slices.EqualFunc(a.Addresses, b.Addresses, func(a, b resolver.Address) bool {
		return a.Addr == b.Addr && a.ServerName == b.ServerName && sameAttributes(a.Attributes, b.Attributes)
	})
}

// sameAttributes reports whether a and b are equal. Values that cannot be compared
// count as changed: comparing them panics.
func sameAttributes(a, b *attributes.Attributes) (same bool) {
	if a == b {
		return true
	}
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	return a.Equal(b)
}

// sameError is sameAttributes for errors: those of a dialer may be of any type.
func sameError(a, b error) (same bool) {
	if a == nil || b == nil {
		return a == b
	}
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	return a == b
}
