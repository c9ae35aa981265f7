// Package endpointsmeta holds what a server says of itself: its identity, its
// weight, its zone, and whether it is draining.
//
// A resolver attaches it to an endpoint with [Set]; the balancing policy reads
// it with [FromEndpoint]. Package registry stores it in etcd, inside the record
// of etcd's official naming/endpoints package, and reads it back with [Decode].
// A resolver that knows nothing of it works too: the server's identity is then
// its address.
//
// # Experimental
//
// The names of this package are stable; package grpc/resolver, on which it
// builds, is experimental in grpc-go.
package endpointsmeta

import (
	"maps"

	"google.golang.org/grpc/resolver"
)

// Meta is what a server says of itself. The zero value is a server of weight 1
// whose identity is its address.
type Meta struct {
	// ID is the stable identity of the server instance (a StatefulSet pod's
	// name, say), not its address: a server that restarts elsewhere keeps it.
	// At most [MaxIDLen] bytes of printable ASCII, for it travels in headers.
	ID string `json:"id,omitempty"`

	// Incarnation grows with each start of the server. The registry makes it
	// from a revision of etcd, so that it can also serve as a fence for storage.
	// When etcd has lost its data, a start after that differs from those before
	// it, but may be less.
	Incarnation int64 `json:"incarnation,omitempty"`

	// Weight is the server's share relative to the others'; 0 means 1.
	Weight uint32 `json:"weight,omitempty"`

	// Zone is the failure domain that the server is in, "" if unknown.
	Zone string `json:"zone,omitempty"`

	// Draining servers keep what they have and take nothing new.
	Draining bool `json:"draining,omitempty"`

	// Labels are for the application: the balancer does not read them.
	Labels map[string]string `json:"labels,omitempty"`
}

// Equal reports whether m and o, which must be a Meta, say the same. It lets
// attributes that hold a Meta be compared.
func (m Meta) Equal(o any) bool {
	om, ok := o.(Meta)
	return ok && m.ID == om.ID && m.Incarnation == om.Incarnation && m.Weight == om.Weight &&
		m.Zone == om.Zone && m.Draining == om.Draining && maps.Equal(m.Labels, om.Labels)
}

type attributeKey struct{}

// attribute is a pointer so that reading it copies no Meta, and so that an
// unchanged one is recognised without a look inside.
type attribute struct{ meta *Meta }

func (a attribute) Equal(o any) bool {
	oa, ok := o.(attribute)
	return ok && (a.meta == oa.meta || a.meta.Equal(*oa.meta))
}

// Set returns a copy of ep that carries m. The map in m must not change
// afterwards.
func Set(ep resolver.Endpoint, m Meta) resolver.Endpoint {
	ep.Attributes = ep.Attributes.WithValue(attributeKey{}, attribute{&m})
	return ep
}

// FromEndpoint returns the Meta that [Set] attached to ep. It cannot fail:
// where the ID is empty, or nothing was attached, ID is ep's first address.
func FromEndpoint(ep resolver.Endpoint) Meta {
	var m Meta
	if a, ok := ep.Attributes.Value(attributeKey{}).(attribute); ok {
		m = *a.meta
	}
	if m.ID == "" && len(ep.Addresses) > 0 {
		m.ID = ep.Addresses[0].Addr
	}
	return m
}
