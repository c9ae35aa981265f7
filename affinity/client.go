package affinity

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/homing-grpc/homing/internal/callctx"
)

// UnaryClientInterceptor returns an interceptor that sends the affinity of the
// call's context along, under [IDHeader] and [KeyHeader].
//
// The context wins over headers that are already in the outgoing metadata, and
// what it says goes out exactly once. In detail: an id or a key in the context
// replaces the header of that name. A key without an id also removes an
// [IDHeader], which the balancer would ignore and a proxy would follow. An id
// without a key leaves a [KeyHeader]: the two do not disagree, and the key
// still tells the server whose call it is. Without affinity in the context
// headers go out as they are; they count as affinity just the same.
//
// A value that a header cannot carry unchanged, or a header of either name that
// has two values, fails the call with code InvalidArgument before it leaves the
// client. Whether a server is required is not sent: it is about picking, and
// picking is done here.
//
// A call that a server answers with [Moved] is made once more, there, and one that a
// server refuses ([WithFence]) goes past it, in what is left of its time; and an answer
// teaches the call's [Session] what the balancer cannot know. With [WithKeyFunc] a call
// without affinity gets the key of its request.
//
// A call of a session without a key carries the id of the session's server, once that
// has signed an answer by the id that the balancer knows: so the server can tell that
// the call belongs somewhere.
//
// It should be the innermost interceptor (see [DialOptions]): headers that are
// added after it may be missed by the balancer of this module, which trusts it
// to have looked. The interceptor is safe for concurrent use.
func UnaryClientInterceptor(opts ...ClientOption) grpc.UnaryClientInterceptor {
	o := newClient(opts)
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, callOpts ...grpc.CallOption) error {
		c := o.newCall(o.withKey(ctx, method, req), cc)
		do := func(c *call) error {
			if c.binding == nil && !o.policy.inDoubt(c) {
				out, err := outgoing(c.ctx, "")
				if err != nil {
					return err
				}
				return invoker(out, method, req, reply, cc, callOpts...)
			}
			invoke := func(ctx context.Context, more ...grpc.CallOption) error {
				return invoker(ctx, method, req, reply, cc, append(callOpts[:len(callOpts):len(callOpts)], more...)...)
			}
			if c.binding == nil {
				return o.policy.invoke(c, invoke)
			}
			return c.invoke(invoke)
		}
		err := do(&c)
		if err == nil {
			return nil
		}
		return c.again(err, cc, method, do)
	}
}

// StreamClientInterceptor is [UnaryClientInterceptor] for streams. Headers go
// out when a stream is opened, so what counts is the context it is opened with.
//
// A stream of a session ends when an answer has confirmed that the session has moved to
// another server: its RecvMsg and SendMsg then fail with code Aborted, and [MovedTo]
// tells where to open it again. See [WithMovedStreams].
func StreamClientInterceptor(opts ...ClientOption) grpc.StreamClientInterceptor {
	o := newClient(opts)
	return func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, callOpts ...grpc.CallOption) (grpc.ClientStream, error) {
		open := func(req any) (grpc.ClientStream, error) {
			c := o.newCall(o.withKey(ctx, method, req), cc)
			if c.binding == nil {
				out, err := outgoing(c.ctx, "")
				if err != nil {
					return nil, err
				}
				return streamer(out, desc, cc, method, callOpts...)
			}
			return c.open(desc, o.keepStreams, func(ctx context.Context, end grpc.CallOption) (grpc.ClientStream, error) {
				return streamer(ctx, desc, cc, method, append(callOpts[:len(callOpts):len(callOpts)], end)...)
			})
		}
		if o.keyFunc != nil && desc.ServerStreams && !desc.ClientStreams && !hasAffinity(ctx) {
			return &lateStream{ctx: ctx, open: open, opened: make(chan struct{})}, nil
		}
		return open(nil)
	}
}

// withKey gives a call without affinity the key of its request.
func (o *clientOptions) withKey(ctx context.Context, method string, req any) context.Context {
	if o.keyFunc == nil || hasAffinity(ctx) {
		return ctx
	}
	return WithKey(ctx, o.keyFunc(ctx, method, req))
}

// hasAffinity reports whether ctx says where its calls belong, by value or by header.
func hasAffinity(ctx context.Context) bool {
	return !callctx.From(ctx).Empty() || hasHeader(ctx, IDHeader) || hasHeader(ctx, KeyHeader)
}

func hasHeader(ctx context.Context, name string) bool {
	return slices.ContainsFunc(metadata.ValueFromOutgoingContext(ctx, name), func(v string) bool { return v != "" })
}

// outgoing returns ctx with its affinity in the outgoing metadata, or with the
// mark that there is none. name is that of a session's server, if only a proxy knows
// it.
func outgoing(ctx context.Context, name string) (context.Context, error) {
	ids := metadata.ValueFromOutgoingContext(ctx, IDHeader)
	keys := metadata.ValueFromOutgoingContext(ctx, KeyHeader)
	v := callctx.From(ctx)
	if v.Empty() {
		return headersOnly(ctx, v, ids, keys)
	}

	id := v.ID
	if id == "" {
		id = name
	}
	if why := unfit(id); why != "" {
		return nil, refuse("id in the context", id, why)
	}
	if why := unfit(v.Key); why != "" {
		return nil, refuse("key in the context", v.Key, why)
	}
	if v.Key == "" {
		// This one stays, so it has to be fit to be sent.
		if _, err := single("outgoing", KeyHeader, keys, unfit); err != nil {
			return nil, err
		}
	}

	addID := id != "" && len(ids) == 0
	addKey := v.Key != "" && len(keys) == 0
	dropIDs := len(ids) > 0 && !only(ids, id)
	dropKeys := len(keys) > 0 && v.Key != "" && !only(keys, v.Key)
	switch {
	case dropIDs || dropKeys:
		return replace(ctx, id, v.Key), nil
	case addID && addKey:
		return metadata.AppendToOutgoingContext(ctx, IDHeader, id, KeyHeader, v.Key), nil
	case addID:
		return metadata.AppendToOutgoingContext(ctx, IDHeader, id), nil
	case addKey:
		return metadata.AppendToOutgoingContext(ctx, KeyHeader, v.Key), nil
	}
	return ctx, nil
}

// headersOnly is outgoing for a context without affinity: the headers, if any,
// are left to the picker.
func headersOnly(ctx context.Context, v *callctx.Value, ids, keys []string) (context.Context, error) {
	id, err := single("outgoing", IDHeader, ids, unfit)
	if err != nil {
		return nil, err
	}
	key, err := single("outgoing", KeyHeader, keys, unfit)
	if err != nil {
		return nil, err
	}
	marked := v != nil && v.NoHeaders
	switch none := id == "" && key == ""; {
	case none && !marked:
		return callctx.WithNoHeaders(ctx), nil
	case !none && marked:
		// ctx comes out of an earlier call (ClientStream.Context), and headers
		// were added since: its mark is no longer true.
		return callctx.With(ctx, callctx.Value{Route: v.Route}), nil
	}
	return ctx, nil
}

// replace returns ctx with id and key in its outgoing metadata in place of what is
// there under the same names. It copies all metadata, which is why outgoing avoids
// it: only headers that contradict the context come here.
func replace(ctx context.Context, id, key string) context.Context {
	md, _ := metadata.FromOutgoingContext(ctx)
	delete(md, IDHeader)
	if id != "" {
		md[IDHeader] = []string{id}
	}
	if key != "" {
		md[KeyHeader] = []string{key}
	}
	return metadata.NewOutgoingContext(ctx, md)
}

// only reports whether v is the one and only value.
func only(values []string, v string) bool { return len(values) == 1 && values[0] == v }
