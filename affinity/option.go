package affinity

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// ClientOption changes what the client interceptors do. A nil one is ignored.
type ClientOption interface{ applyClient(*clientOptions) }

// ServerOption changes what the server interceptors do. A nil one is ignored.
type ServerOption interface{ applyServer(*serverOptions) }

// clientOptions is what ClientOptions set. Only target and policy are written after
// newClient.
type clientOptions struct {
	keyFunc     func(ctx context.Context, method string, req any) string
	keepStreams bool // of sessions that have moved

	target atomic.Pointer[channelTarget]
	policy policy
}

type clientOptionFunc func(*clientOptions)

func (f clientOptionFunc) applyClient(o *clientOptions) { f(o) }

func newClient(opts []ClientOption) *clientOptions {
	o := new(clientOptions)
	for _, opt := range opts {
		if opt != nil {
			opt.applyClient(o)
		}
	}
	return o
}

// WithKeyFunc gives calls without affinity the key of their request: f is called with
// the full method name ("/game.Rooms/Join") and the request message, and returns the
// key as if for [WithKey], "" for none. It is not called when the context or the
// outgoing metadata has an id, a key or a session.
//
// req is the message of unary and of server-streaming calls; the latter are opened when
// the generated code sends it, which is at once; until then, RecvMsg and Header wait.
// Where the client streams, the stream is
// opened before there is a message: req is nil, and f has the context and the method to
// go by. f runs on the goroutine of the call, concurrently with itself, and must not
// keep or change req. A nil f is none, which is the default. Used twice, the last holds.
func WithKeyFunc(f func(ctx context.Context, method string, req any) string) ClientOption {
	return clientOptionFunc(func(o *clientOptions) { o.keyFunc = f })
}

// WithMovedStreams says what becomes of the open streams of a [Session] that has moved
// to another server: with end, the default, they end with code Aborted, and [MovedTo]
// tells where the session went, so that there are never two truths about one session;
// without, they go on until the old server or the connection to it ends.
func WithMovedStreams(end bool) ClientOption {
	return clientOptionFunc(func(o *clientOptions) { o.keepStreams = !end })
}

// serverOptions is what ServerOptions set. It is not written after newServer.
type serverOptions struct {
	stamp metadata.MD // sent with every answer, nil for none
	drain *drain      // nil if streams do not leave
	trust *trust      // nil if all callers are trusted
	err   error       // the answer to every call, nil if the options are sound

	fence Fence // nil if calls are never refused
}

type serverOptionFunc func(*serverOptions)

func (f serverOptionFunc) applyServer(o *serverOptions) { f(o) }

// WithServerID makes the server interceptors sign every answer of a handler
// with id, under [IDHeader], so that a client learns which server answered even
// through a proxy. It is the id that the server is registered under. The
// default is not to sign. Used twice, the last one holds.
//
// The id goes onto the response header with the first message, or when the
// handler succeeds without one. When a handler fails before it sent anything
// the id goes onto the trailer, and the header is left alone: gRPC retries only
// calls whose response is nothing but a trailer (gRFC A6). The trailer also
// takes it when the handler has sent the header past the interceptor, by
// [grpc.SendHeader]. A client reads the header first, then the trailer.
//
// An id that a header cannot carry, the empty one included, is a server set up
// wrongly. As an option cannot return an error, every call is then answered
// with code Internal, which a health check notices before users do.
func WithServerID(id string) ServerOption {
	why := problem(id)
	if id == "" {
		why = "it is empty"
	}
	return serverOptionFunc(func(o *serverOptions) {
		o.stamp, o.err = metadata.MD{IDHeader: {id}}, nil
		if why != "" {
			o.err = status.Errorf(codes.Internal, "affinity: WithServerID: server id %s: %s", quote(id), why)
		}
	})
}

func newServer(opts []ServerOption) *serverOptions {
	o := new(serverOptions)
	for _, opt := range opts {
		if opt != nil {
			opt.applyServer(o)
		}
	}
	return o
}

// WithDrain lets streams leave a server that drains in good order. From the moment that
// draining ends, they have the grace to end by themselves: handlers see it by [Draining].
// After it their context ends and RecvMsg and SendMsg fail in the handler, and whatever
// the handler then returns, nil too, reaches the client as code Aborted with the detail
// that [MovedTo] reads; what it returns of [Moved] is left as it is. A [Session] goes to
// another server with its next call; its OnMove says that it was drained. Streams that
// are opened after the grace end at once. A SendMsg that is waiting for a client that
// does not read is not ended by this: it ends with the connection.
//
// draining is best the context that also ends [registry.Serve], so that the server is
// known to be draining when its clients come back to the balancer. Unary calls are not
// touched. The default is that streams last until the server stops. Used twice, the
// last one holds. A nil draining is never; a negative grace is none.
//
// [registry.Serve]: https://pkg.go.dev/github.com/homing-grpc/homing/endpointsmeta/registry#Serve
func WithDrain(draining context.Context, grace time.Duration) ServerOption {
	return serverOptionFunc(func(o *serverOptions) {
		o.drain = nil
		if draining != nil {
			o.drain = newDrain(draining, grace)
		}
	})
}

// DialOptions returns the dial options that add [UnaryClientInterceptor] and
// [StreamClientInterceptor] to a channel.
//
// gRPC calls chained interceptors in the order of the options. Give these last,
// so that they run innermost and see the affinity that the others put into the
// context or the metadata.
func DialOptions(opts ...ClientOption) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(UnaryClientInterceptor(opts...)),
		grpc.WithChainStreamInterceptor(StreamClientInterceptor(opts...)),
	}
}

// ServerOptions returns the server options that add [UnaryServerInterceptor]
// and [StreamServerInterceptor] to a server.
//
// gRPC calls chained interceptors in the order of the options. Give these
// first, so that they run outermost: all others then have the key in their
// context, and a call that one of them fails is signed as a failed one. Only
// what [WithTrust] needs to know of the caller has to come before.
func ServerOptions(opts ...ServerOption) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(UnaryServerInterceptor(opts...)),
		grpc.ChainStreamInterceptor(StreamServerInterceptor(opts...)),
	}
}
