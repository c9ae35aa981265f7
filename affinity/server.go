package affinity

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/homing-grpc/homing/internal/callctx"
)

// UnaryServerInterceptor returns an interceptor that reads the affinity headers
// of a call.
//
// The key goes into the handler's context as if by [WithKey], so that calls
// which the handler makes with it carry the key on; a key that another
// interceptor put there before wins. The id does not: it names a server of this
// service, and the handler's calls go to others. A handler that wants it reads
// it from the incoming metadata.
//
// A header that is longer than 256 bytes, holds anything but printable ASCII,
// starts or ends with a space, or has two different values, is answered with
// code InvalidArgument before the handler runs. The same value twice is
// accepted, and an empty one is none. [WithTrust] says whose headers count.
//
// It should be the outermost interceptor (see [ServerOptions]). The interceptor
// is safe for concurrent use.
func UnaryServerInterceptor(opts ...ServerOption) grpc.UnaryServerInterceptor {
	o := newServer(opts)
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, from, err := o.incoming(ctx)
		if err != nil {
			return nil, err
		}
		if o.refuses(ctx) {
			return nil, from.refusal(codes.FailedPrecondition)
		}
		resp, err := handler(ctx, req)
		err = from.forwarded(err)
		// The handler has the transport stream of gRPC itself, not one of ours
		// that would see SendHeader: grpc.SetSendCompressor refuses any other.
		if from.stamp != nil && (err != nil || grpc.SetHeader(ctx, from.stamp) != nil) {
			// That there is no stream to sign must not fail the call.
			_ = grpc.SetTrailer(ctx, from.stamp)
		}
		return resp, from.told(err)
	}
}

// StreamServerInterceptor is [UnaryServerInterceptor] for streams. The key is
// in the context of the stream that the handler is given.
func StreamServerInterceptor(opts ...ServerOption) grpc.StreamServerInterceptor {
	o := newServer(opts)
	return func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		old := ss.Context()
		ctx, from, err := o.incoming(old)
		if err != nil {
			return err
		}
		run := func(ss grpc.ServerStream) error { return from.forwarded(handler(srv, ss)) }
		serve := run
		if d := o.drain; d != nil {
			serve = func(ss grpc.ServerStream) error { return d.serve(ss, run) }
		}
		if o.fence != nil && affine(ctx) {
			unfenced := serve
			serve = func(ss grpc.ServerStream) error { return o.behindFence(ctx, from, ss, unfenced) }
		}
		if from.stamp == nil {
			if ctx != old {
				ss = &keyedStream{ServerStream: ss, ctx: ctx}
			}
			return from.told(serve(ss))
		}
		signed := &signedStream{keyedStream: keyedStream{ServerStream: ss, ctx: ctx}, stamp: from.stamp}
		err = serve(signed)
		signed.finish(err)
		return from.told(err)
	}
}

// incoming checks the headers of a call, and returns ctx with their key, and who called.
func (o *serverOptions) incoming(ctx context.Context) (context.Context, caller, error) {
	if o.err != nil {
		return nil, caller{}, o.err
	}
	if err := o.trust.wrong(); err != nil {
		return nil, caller{}, err
	}
	if u := o.trust.outside(ctx); u != nil {
		return u.admit(ctx, o.stamp)
	}
	from := caller{stamp: o.stamp}
	if _, err := single("incoming", IDHeader, metadata.ValueFromIncomingContext(ctx, IDHeader), problem); err != nil {
		return nil, from, err
	}
	key, err := single("incoming", KeyHeader, metadata.ValueFromIncomingContext(ctx, KeyHeader), problem)
	if err != nil {
		return nil, from, err
	}
	return withIncoming(ctx, key), from, nil
}

// withIncoming returns ctx with the key that came in, unless another interceptor has put
// one there.
func withIncoming(ctx context.Context, key string) context.Context {
	if key == "" {
		return ctx
	}
	if v := callctx.From(ctx); v != nil && v.Key != "" {
		return ctx
	}
	return WithKey(ctx, key)
}

// keyedStream is a stream with another context.
type keyedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *keyedStream) Context() context.Context { return s.ctx }

// signedStream signs the response header as late as it can: a header that is
// set before the handler fails would turn off the client's retries.
type signedStream struct {
	keyedStream
	stamp metadata.MD

	// signed is set after the stamp is in place, so that of two senders, one of
	// which gRPC does not allow to be there, none sends without it.
	signed atomic.Bool
}

// SendHeader sends the stamp in the same go, and only then: a md that gRPC
// refuses leaves nothing behind.
func (s *signedStream) SendHeader(md metadata.MD) error {
	if s.signed.Load() {
		return s.ServerStream.SendHeader(md)
	}
	err := s.ServerStream.SendHeader(metadata.Join(md, s.stamp))
	if err == nil {
		s.signed.Store(true)
	}
	return err
}

func (s *signedStream) SendMsg(m any) error {
	s.sign()
	return s.ServerStream.SendMsg(m)
}

// sign puts the stamp on the header, or on the trailer when the header has been
// sent by way of the context.
func (s *signedStream) sign() {
	if s.signed.Load() {
		return
	}
	if s.SetHeader(s.stamp) != nil {
		s.SetTrailer(s.stamp)
	}
	s.signed.Store(true)
}

// finish signs the answer of a handler that has sent nothing.
func (s *signedStream) finish(err error) {
	switch {
	case err == nil:
		s.sign()
	case !s.signed.Load():
		s.SetTrailer(s.stamp)
	}
}
