package registry

import (
	"errors"
	"math"
	"sync/atomic"
	"time"
)

// A Fence tells a server when it has been out of the registry for so long that its
// clients go elsewhere: one that is cut off from etcd, and not from its clients, would
// otherwise serve on next to its successors. Give it to [Register] or [Serve] by
// [WithFence], and to affinity.WithFence, which refuses calls by it; or ask it before
// each write to a storage.
//
// It counts from the moment at which the last renewal of the lease that etcd has
// answered was sent, for the lease ends no earlier than its TTL after that; on the
// server's own monotonic clock, so that a wall clock that is set changes nothing. To
// the TTL comes the time for which clients keep a server that has left the list. A
// margin is taken off for clocks of different speeds: a tenth of the TTL, and a second
// at most. A record that is seen to be deleted or overwritten counts from when it was
// last seen in its place. The fence is lifted when the server is registered again, be
// it by the lease that it had.
//
// From when the lease may have ended until the fence falls, the server is [Fence.Absent]:
// it serves those that kept it, and none that another server has refused.
//
// Until it is first registered, a server counts as one whose lease ended when the Fence
// was made: clients may know its predecessor. When [Registration.Close] begins, the
// fence falls for good: clients of a server that says goodbye go elsewhere at once.
//
// A process that is stopped, by SIGSTOP or by a debugger, is fenced when it wakes. A
// virtual machine that is suspended is not, for its clock stops with it; nor does a
// fence reach into a handler that is at work. What must never be written twice needs a
// fence in its storage, which Meta.Incarnation is made for. And while etcd is away for
// everybody, every server is fenced in the end: that is the price.
//
// The client must lead to etcd itself: its grpc-proxy renews leases at times of its own, and
// answers with what it has, so that a fence behind it may fall late.
//
// A Fence belongs to one registration at a time. It is safe for concurrent use.
type Fence struct {
	keep time.Duration
	base time.Time

	// falls is when it falls, in nanoseconds since base. It is on the way of every call.
	falls atomic.Int64
}

// NewFence returns a fence for a server whose clients keep it for that long after its
// record has gone: their absentGrace, or the longest of them. Clients that start
// meanwhile do not know the server and go to others; and when another server crashes
// meanwhile, its clients come here only if they have not seen that this one is gone. 0 is
// for those that may have business with the same sessions: the fence falls before the
// record can have gone. A negative keep is 0.
func NewFence(keep time.Duration) *Fence {
	f := &Fence{keep: max(keep, 0), base: time.Now()}
	f.falls.Store(int64(f.keep - fenceMargin(f.keep)))
	return f
}

// Fenced reports whether the server must not serve its sessions now. It takes neither a
// lock nor memory. A nil Fence never falls.
func (f *Fence) Fenced() bool { return f != nil && f.left() <= 0 }

// Absent reports whether the record may be gone: clients that have seen so give the
// server nothing that it does not have. It is so before [Fence.Fenced], by
// the time for which clients keep the server, and takes neither a lock nor memory. A nil
// Fence is never absent.
func (f *Fence) Absent() bool { return f != nil && f.left() <= f.keep }

// left is how long it is until the fence falls.
func (f *Fence) left() time.Duration { return time.Duration(f.falls.Load()) - time.Since(f.base) }

// stands notes that the record is in etcd under a lease of that TTL, of which the
// renewal that etcd answered was sent then.
func (f *Fence) stands(sent time.Time, ttl time.Duration) {
	if f == nil {
		return
	}
	falls := int64(sent.Sub(f.base) + ttl + f.keep - fenceMargin(ttl))
	for {
		old := f.falls.Load()
		if falls <= old || f.falls.CompareAndSwap(old, falls) {
			return
		}
	}
}

// gone notes that the record is gone, and was last seen then.
func (f *Fence) gone(seen time.Time, ttl time.Duration) {
	if f == nil {
		return
	}
	falls := int64(seen.Sub(f.base) + f.keep - fenceMargin(ttl))
	for {
		old := f.falls.Load()
		if falls >= old || f.falls.CompareAndSwap(old, falls) {
			return
		}
	}
}

// close makes the fence fall now.
func (f *Fence) close() {
	if f != nil {
		f.falls.Store(math.MinInt64 / 2) // so that left does not wrap around
	}
}

// fenceMargin is for clocks of different speeds, and for what comes between the question
// and the answer.
func fenceMargin(ttl time.Duration) time.Duration { return min(ttl/10, time.Second) }

// WithFence keeps f for the registration: see [Fence]. The lease is then renewed by
// requests of their own, three times in its TTL, so that it is known when they were
// sent. [WithNotify] tells of [Fenced].
func WithFence(f *Fence) RegisterOption {
	return registerOption(func(r *Registration) error {
		if f == nil || f.base.IsZero() {
			return errors.New("registry: fence must be made by NewFence")
		}
		r.fence = f
		return nil
	})
}
