// Package callctx holds what one call's context says about affinity. It exists
// so that the picker can read it without a copy and without an exported name:
// package affinity writes it, package stickybalancer reads it.
package callctx

import (
	"context"

	"github.com/cespare/xxhash/v2"

	"github.com/homing-grpc/homing/internal/session"
)

// Value is the affinity of one call. It is immutable once it is in a context.
type Value struct {
	// What most picks need comes first, and so into one cache line. Kind and hashes
	// follow from the rest. They are computed here, once, because a picker runs once
	// per attempt and queue wake-up.
	Kind     Kind
	Required bool // ID or an error, never another server
	Moved    bool // ID is where a server said that the state is

	// NoHeaders says that the outgoing metadata was seen to hold neither
	// default affinity header, so that a picker need not look again.
	NoHeaders bool

	// Hash is Hash(Key), or Hash(ID) without a key: the place in the
	// rendezvous order of a call that has to find a home. IDHash is Hash(ID).
	Hash   uint64
	IDHash uint64

	Session *session.Session // what remembers the server, nil if nothing does
	ID      string           // the server wanted, "" if none
	Key     string           // the session key, "" if none
	Route   *Route           // where picks are noted, nil if nobody asks
	Not     []string         // the ids of servers that have refused it: others come first
}

// RefusedHeader is in the metadata of a call that another server has refused: its value
// is "1". A server that may be gone from the list of others must not take it, for those
// may choose a third.
const RefusedHeader = "affinity-refused"

// Kind says what to look at first.
type Kind uint8

// The kinds, of which the first that fits holds.
const (
	Aside     Kind = iota // what most calls need not be asked is to be looked at
	ByID                  // it has an id
	BySession             // it has a session
	ByKey                 // it has a key
	Marked                // it has nothing, nor do its headers
	Nothing               // it has nothing
)

func (v *Value) kind() Kind {
	switch {
	case v.Route != nil || v.Moved || len(v.Not) > 0:
		return Aside
	case v.ID != "":
		return ByID
	case v.Session != nil:
		return BySession
	case v.Key != "":
		return ByKey
	case v.NoHeaders:
		return Marked
	}
	return Nothing
}

// Empty reports whether v says nothing of where a call belongs.
func (v *Value) Empty() bool {
	return v == nil || (v.ID == "" && v.Key == "" && v.Session == nil)
}

type key struct{}

// From returns the value in ctx, nil if there is none.
func From(ctx context.Context) *Value {
	v, _ := ctx.Value(key{}).(*Value)
	return v
}

// With returns ctx carrying a copy of v with what follows from it computed.
func With(ctx context.Context, v Value) context.Context {
	v.Derive()
	return &valueCtx{ctx, v}
}

// Derive computes what follows from the rest.
func (v *Value) Derive() {
	v.Hash, v.IDHash, v.Kind = 0, 0, v.kind()
	if v.ID != "" {
		v.IDHash = Hash(v.ID)
		v.Hash = v.IDHash
	}
	if v.Key != "" {
		v.Hash = Hash(v.Key)
	}
}

// valueCtx is what context.WithValue makes, in one allocation.
type valueCtx struct {
	context.Context
	v Value
}

func (c *valueCtx) Value(k any) any {
	if _, ok := k.(key); ok { // cheaper than to compare
		return &c.v
	}
	return c.Context.Value(k)
}

// noHeaders is shared: a call without affinity costs no Value of its own.
var noHeaders = &Value{NoHeaders: true, Kind: Marked}

// WithNoHeaders returns ctx marked as a call without affinity whose outgoing
// metadata holds neither default affinity header.
func WithNoHeaders(ctx context.Context) context.Context {
	if v := From(ctx); v != nil && v.Route != nil {
		return With(ctx, Value{NoHeaders: true, Route: v.Route})
	}
	return &markedCtx{ctx}
}

// markedCtx is a context whose value is noHeaders.
type markedCtx struct{ context.Context }

func (c *markedCtx) Value(k any) any {
	if _, ok := k.(key); ok {
		return noHeaders
	}
	return c.Context.Value(k)
}

// Hash is the hash of keys and server ids: XXH64 with seed 0, which every
// language has and which is the same on every machine. It is part of the wire
// contract: two releases that disagree on it disagree on every key's home.
func Hash(s string) uint64 { return xxhash.Sum64String(s) }
