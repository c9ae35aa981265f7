package affinity

import (
	"context"
	"io"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/session"
)

// A Fence knows what a server may still serve that may be out of the registry. That of
// package registry does; another one may know more. Its methods are called for calls and
// messages of streams with affinity, concurrently, and must not block.
type Fence interface {
	// Absent reports whether the server may be gone from the lists of some clients. It
	// keeps its sessions, and takes none of another server: those clients choose a third.
	Absent() bool

	// Fenced reports whether clients may have let go of the server, so that it must not
	// serve its sessions either.
	Fenced() bool
}

// WithFence makes a server refuse calls with affinity, those that come with an
// [IDHeader] or a [KeyHeader], while fence says that it is Fenced: it has been cut off
// from the registry for so long that its clients may go elsewhere, and must not be a
// second server of their sessions. While it is Absent it refuses those that another
// server has refused, which come with an "affinity-refused" header from the balancer of
// this module. Calls without affinity go through.
//
// A unary call is refused before the handler runs, with code FailedPrecondition. A
// stream is refused with code Aborted when it is opened, when its handler is about to
// receive a message, so that it does not get one, or to send one; whatever the handler
// then returns, the client gets the refusal. It is a status that [MovedTo] reads, and
// gives "". A handler that is at work when the fence falls is left alone.
//
// The unary client interceptor makes the call again, unseen, as if that server were
// gone; if the next one refuses it, too, as if both were, and so on, three times at
// most; then the caller gets an error with code Aborted that names them. It is sent to
// nobody else if it was made with [Require]. A stream gets the error. Either way a
// [Session] goes elsewhere from now on, and its OnMove says that it was moved, once.
// Calls without a session ask that server again each time, and are refused there once,
// for as long as the balancer keeps it.
//
// The first call of a session without a key does not say that it has affinity, and goes
// through. The others do if the server has [WithServerID] with the id that it is
// registered under, which also lets errors name it.
//
// The default, and a nil fence, is to refuse nothing. Used twice, the last holds.
func WithFence(fence Fence) ServerOption {
	return serverOptionFunc(func(o *serverOptions) { o.fence = fence })
}

// refuses reports whether the call is to be refused.
func (o *serverOptions) refuses(ctx context.Context) bool {
	return o.fence != nil && affine(ctx) && o.shuts(ctx)
}

// shuts reports whether the fence shuts out a call with affinity.
func (o *serverOptions) shuts(ctx context.Context) bool {
	return o.fence.Fenced() || len(metadata.ValueFromIncomingContext(ctx, callctx.RefusedHeader)) > 0 && o.fence.Absent()
}

// refusal is what the client of a call that is refused gets. It names the server as
// answers do.
func (c caller) refusal(code codes.Code) error {
	var by string
	if c.stamp != nil {
		by = c.stamp[IDHeader][0]
	}
	return refusedStatus(code, by, by)
}

// refusedStatus says that servers have refused a call, the one that goes by that id
// this very call.
func refusedStatus(code codes.Code, by string, all ...string) error {
	return movedInfo(code, map[string]string{"id": "", session.FencedKey: by}, refusedBy(all...))
}

// affine reports whether an incoming call says where it belongs.
func affine(ctx context.Context) bool {
	for _, header := range []string{IDHeader, KeyHeader} {
		for _, v := range metadata.ValueFromIncomingContext(ctx, header) {
			if v != "" {
				return true
			}
		}
	}
	return false
}

// forwarded returns what a handler may say of an error. That others refused a call of
// its own is no refusal of the call that it serves: that one would be made again, and
// the handler has run; or its session would leave a server that is well, if a balancer
// has sent it there and no proxy is between them. Callers outside are not told who refused.
func (c caller) forwarded(err error) error {
	if _, ok := session.Fenced(err); !ok {
		return err
	}
	said := "a call that the handler made was refused"
	if c.outside == nil {
		said += ": " + status.Convert(err).Message()
	}
	return movedInfo(codes.Aborted, map[string]string{"id": "", session.PassedOnKey: "1"}, said)
}

// fencedStream is a stream with affinity, which ends when the fence falls.
type fencedStream struct {
	grpc.ServerStream
	fence   Fence
	from    caller
	refused atomic.Bool
}

// behindFence runs the handler on a stream with affinity.
func (o *serverOptions) behindFence(ctx context.Context, from caller, ss grpc.ServerStream, handler func(grpc.ServerStream) error) error {
	s := &fencedStream{ServerStream: ss, fence: o.fence, from: from}
	if o.shuts(ctx) {
		return from.refusal(codes.Aborted)
	}
	err := handler(s)
	if s.refused.Load() {
		return from.refusal(codes.Aborted)
	}
	return err
}

// refuses reports whether the stream is refused. Once it is it stays so: the client goes
// elsewhere.
func (s *fencedStream) refuses() bool {
	if s.refused.Load() {
		return true
	}
	if !s.fence.Fenced() {
		return false
	}
	s.refused.Store(true)
	return true
}

func (s *fencedStream) SendMsg(m any) error {
	if s.refuses() {
		return s.from.refusal(codes.Aborted)
	}
	return s.ServerStream.SendMsg(m)
}

// RecvMsg refuses the end of what the client sends, too: a handler may act on that.
func (s *fencedStream) RecvMsg(m any) error {
	if s.refuses() {
		return s.from.refusal(codes.Aborted)
	}
	err := s.ServerStream.RecvMsg(m)
	if (err == nil || err == io.EOF) && s.refuses() {
		return s.from.refusal(codes.Aborted)
	}
	return err
}
