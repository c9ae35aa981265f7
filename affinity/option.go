package affinity

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// ClientOption changes what the client interceptors do. There is none yet.
type ClientOption interface{ applyClient(*clientOptions) }

// ServerOption changes what the server interceptors do. A nil one is ignored.
type ServerOption interface{ applyServer(*serverOptions) }

// clientOptions is what ClientOptions set.
type clientOptions struct{}

// serverOptions is what ServerOptions set. It is not written after newServer.
type serverOptions struct {
	stamp metadata.MD // sent with every answer, nil for none
	err   error       // the answer to every call, nil if the options are sound
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
// context, and a call that one of them fails is signed as a failed one.
func ServerOptions(opts ...ServerOption) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(UnaryServerInterceptor(opts...)),
		grpc.ChainStreamInterceptor(StreamServerInterceptor(opts...)),
	}
}
