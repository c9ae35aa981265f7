package e2e

import (
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
)

func TestAStaticListMayCarryIDs(t *testing.T) {
	static := manual.NewBuilderWithScheme("static")
	var list []resolver.Endpoint
	for _, id := range []string{"a", "b", "c"} {
		s := startServer(t, id)
		ep := resolver.Endpoint{Addresses: []resolver.Address{{Addr: s.addr}}}
		list = append(list, endpointsmeta.Set(ep, endpointsmeta.Meta{ID: id}))
	}
	static.InitialState(resolver.State{Endpoints: list})
	c := dial(t, "static:///game", grpc.WithResolvers(static))
	c.sees("a", "b", "c")
	c.reaches("b", affinity.Require(bg, "b"))
}

func TestAStaticListOfAddressesHasAddressesAsIDs(t *testing.T) {
	static := manual.NewBuilderWithScheme("static")
	a, b := startServer(t, "a"), startServer(t, "b")
	static.InitialState(resolver.State{Addresses: []resolver.Address{{Addr: a.addr}, {Addr: b.addr}}})
	c := dial(t, "static:///game", grpc.WithResolvers(static))
	c.sees("a", "b")
	c.reaches("b", affinity.Require(bg, b.addr))
}

func TestAPassthroughTargetIsOneServer(t *testing.T) {
	a := startServer(t, "a")
	c := dial(t, "passthrough:///"+a.addr)
	c.sees("a")
	c.reaches("a", affinity.Require(bg, a.addr))
	session := affinity.NewSession("player-7")
	c.reaches("a", session.Context(bg))
}
