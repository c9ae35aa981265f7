package stickybalancer

import (
	"strings"
	"sync/atomic"
)

// nameless warns, once, of calls that name a server where no endpoint has a name: as a
// rule the resolver does not pass ids on, and every such call goes where it would go if
// its server were gone.
type nameless struct {
	log  logger
	said atomic.Bool
}

// note takes in that a call wants a server that nobody knows. Picks call it, so what has
// to be said is said elsewhere. An address is what a server that is gone was known by.
func (n *nameless) note(m *members, id string) {
	if m.bare && !n.said.Load() && !strings.Contains(id, ":") && n.said.CompareAndSwap(false, true) {
		go n.log.warningf("calls name a server by its id, but the resolver's list has no id, only addresses: " +
			"such calls go as if their server were gone. To pass ids on, use registry.NewBuilder in place of etcd's own resolver, " +
			"or endpointsmeta.Set in another one. Only if the endpoints are proxies, which read the id themselves, all is well")
	}
}
