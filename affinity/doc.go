// Package affinity says where a gRPC call wants to go.
//
// A server that holds state (a game room, a document, an actor, a warm model)
// is the only one that can answer a call about that state well. This package
// puts the wish into the call's context; the balancer of package stickybalancer
// reads it there and picks the connection. A call without a wish is spread
// round robin as ever.
//
// There are three wishes:
//
//   - [WithKey] names the state: all calls with one key go to the server that
//     is home to it, from every process, and nobody has to remember where that
//     is. Start here.
//   - [With] names the server, for calls that would rather be where something
//     was left. When the server stays away they go on elsewhere.
//   - [Require] names the server and takes no other: those calls fail instead.
//
// A [Session] remembers where its first call went, with or without a key, stays there
// when servers join or drain, and tells by [Session.OnMove] when it had to move and
// state was left behind. It is what a player's or a user's calls are made with.
//
// On a channel that uses that balancer, one line before the call is all:
//
//	ctx = affinity.WithKey(ctx, roomID)
//
// # Interceptors
//
// The balancer needs no interceptor. Interceptors carry the wish over the wire,
// under [KeyHeader] and [IDHeader], for whatever sits between or behind:
// proxies that route by header, servers that want to see it, and the calls that
// a handler makes in turn, which inherit the key. [DialOptions] installs them
// in a client, [ServerOptions] in a server. Only channels that have them send
// keys, so a key never reaches a service that was not meant to see it.
//
// The key travels on from hop to hop, because state of one session is found by
// one key in every service. An id never does: it names a server of one service
// and means nothing to the next.
//
// # Servers
//
// A handler that does not hold the state says who does, by [Moved]: the client goes there,
// once, unseen. One that holds nothing any more says so by [Release]. [WithDrain] lets
// streams leave a server that drains in good order. [WithFence] makes a server that has been
// cut off from the registry refuse what others serve by now.
//
// # Callers outside
//
// Who may call a server may name any id or key, unless [WithTrust] says whose word counts:
// that of others is refused ([Refuse]), ignored ([Strip]), or taken as far as the service
// itself has sealed it for them ([Sealed]). A [Sealer] makes ids, keys and whole sessions
// that their carrier can neither read, nor make up, nor pass on to another user. SECURITY.md
// has who can steer whom where.
//
// # Headers
//
// A caller that writes the headers itself (a gateway that forwards them, a
// client in another language) gets the same treatment. What the context says
// wins over what the headers say. See [UnaryClientInterceptor] for the rules.
//
// An id or a key is at most 256 bytes of printable ASCII that neither starts
// nor ends with a space. The context takes any string; the interceptors refuse,
// with code InvalidArgument, what a header cannot carry unchanged.
//
// # Logs
//
// The grpclog component is "affinity". There is one warning, given once by the interceptors
// of a channel: a call that named a server was answered by another one, and the channel's
// policy is not the one of package stickybalancer.
//
// # Experimental
//
// This package may change in incompatible ways until the module is at v1. The
// names of the headers, and what they mean, will not.
package affinity
