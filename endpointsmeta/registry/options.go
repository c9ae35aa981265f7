package registry

import (
	"fmt"
	"time"
)

// BuilderOption configures [NewBuilder].
type BuilderOption interface{ applyBuilder(*builder) error }

// ListOption configures [List] and [Watch], and [NewBuilder] too.
type ListOption interface {
	BuilderOption
	applyFeed(*feed)
}

// RegisterOption configures [Register], and [Serve] too.
type RegisterOption interface {
	ServeOption
	applyRegister(*Registration) error
}

// ServeOption configures [Serve].
type ServeOption interface{ applyServe(*serving) error }

type builderOption func(*builder) error

func (f builderOption) applyBuilder(b *builder) error { return f(b) }

type registerOption func(*Registration) error

func (f registerOption) applyRegister(r *Registration) error { return f(r) }

func (f registerOption) applyServe(s *serving) error {
	s.register = append(s.register, f)
	return nil
}

type serveOption func(*serving) error

func (f serveOption) applyServe(s *serving) error { return f(s) }

// WithProbeInterval sets how often, a fifth more or less, a resolver looks whether etcd
// has lost its data, which a watch cannot tell: the longest that it can be mistaken after
// that. Default 5s, at least 100ms.
//
// A look reads etcd's revision. If that has moved since all was seen to be as it is known,
// whoever it was that wrote, it also reads the names of the service's records, where they
// are 100 at most. Where there are more it reads their number, and each twelfth time the
// names of those that are new since then: so long may it take until a record is found that
// changed, or came when another went, while the watch was deaf. All names of more than 100
// are read each 144th time, and when the connection to etcd was lost and is back: up to a
// second for each thousand later, and no later than the next look, so that clients do not
// all read at once. Behind a proxy that keeps the connection, an etcd that was wiped and has
// come to the very revision that it had is noticed when anybody writes next.
func WithProbeInterval(d time.Duration) BuilderOption {
	return builderOption(func(b *builder) error {
		if d < minProbeInterval {
			return fmt.Errorf("registry: probe interval must be at least 100ms, got %v", d)
		}
		b.probe = d
		return nil
	})
}

type plainAddresses struct{}

func (plainAddresses) applyBuilder(b *builder) error { b.plain = true; return nil }

func (plainAddresses) applyFeed(f *feed) { f.plain = true }

// WithPlainAddresses also reads records that are nothing but an address: under any key
// of the service, a value like "10.0.0.7:7000", as hand-written registrations have it.
// The server's id is then that address; what the key says is not looked at, for it may
// be an address, a name, or a lease that is another one after each restart. The address
// is a host name or an IP, and a port from 1 to 65535. Default: such a record is skipped
// with a warning, like any that makes no sense.
func WithPlainAddresses() ListOption { return plainAddresses{} }

// WithTTL sets how long a server that has died stays in the registry: the time to
// live of its lease, which is renewed three times in it. Default 10s; whole
// seconds, at least 1s (etcd may make a short one longer).
func WithTTL(d time.Duration) RegisterOption {
	return registerOption(func(r *Registration) error {
		if d < time.Second || d%time.Second != 0 {
			return fmt.Errorf("registry: TTL must be whole seconds, at least 1s, got %v", d)
		}
		r.ttl = d
		return nil
	})
}

// WithTakeover makes [Register] take the id from whoever holds it. That server
// notices, and waits until the id is free.
func WithTakeover() RegisterOption {
	return registerOption(func(r *Registration) error { r.takeover = true; return nil })
}

// WithNotify makes f be called with every change of the state, in order, on one
// goroutine. f may take its time; the registration does not wait for it.
func WithNotify(f func(State)) RegisterOption {
	return registerOption(func(r *Registration) error {
		if f == nil {
			return fmt.Errorf("registry: notify function must not be nil")
		}
		r.notify = f
		return nil
	})
}

// WithAdvertise sets the address that [Serve] registers. Default: the listener's,
// which must then be one that clients can reach, not a wildcard.
func WithAdvertise(addr string) ServeOption {
	return serveOption(func(s *serving) error { s.addr = addr; return nil })
}

// WithDrainTimeout bounds how long [Serve] takes to leave: after it, calls that
// are still under way are cut. The record goes at the latest when a quarter of it, or 5s,
// is left: a server that is never without a call has that long for its last ones. What else
// the sessions of these call goes to other servers meanwhile. Default 30s.
func WithDrainTimeout(d time.Duration) ServeOption {
	return serveOption(func(s *serving) error {
		if d <= 0 {
			return fmt.Errorf("registry: drain timeout must be positive, got %v", d)
		}
		s.drainTimeout = d
		return nil
	})
}

// WithCalls lets [Serve] see the calls under way, so that it stays in the registry
// until the last of them has ended. Calls must be the server's stats handler.
// Without it, Serve stays for a moment, and calls end on connections that close.
//
// Sessions and calls by id stay with a server that drains, so that a busy one is seldom
// without a call: it stays for as long as [WithDrainTimeout] has it.
//
// Between the calls of a client that only makes unary ones, none is under way: such
// a client is told by the application, or finds its next server when the record goes.
func WithCalls(c *Calls) ServeOption {
	return serveOption(func(s *serving) error {
		if c == nil {
			return fmt.Errorf("registry: calls must not be nil")
		}
		s.calls = c
		return nil
	})
}
