package affinity

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ExpiredReason is the reason of the
// [google.golang.org/genproto/googleapis/rpc/errdetails.ErrorInfo] by which a server says
// that a sealed key has expired; its domain is [MovedDomain], and its metadata has the
// header's name under "header". Whoever gets it asks for another key where it had this one
// from.
const ExpiredReason = "AFFINITY_EXPIRED"

// Untrusted is what becomes of the ids and keys of callers that are not trusted:
// [Refuse], [Strip] or [Sealed]. The zero value is Refuse.
type Untrusted struct {
	mode    mode
	sealer  *Sealer // these are for Sealed alone
	subject func(context.Context) string
}

type mode uint8

const (
	refusing mode = iota
	stripping
	sealing
)

// Refuse answers calls of untrusted callers that carry an id or a key with code
// PermissionDenied, before the handler runs. The error names the header.
func Refuse() Untrusted { return Untrusted{mode: refusing} }

// Strip lets calls of untrusted callers through without their ids and keys: the handler,
// and the interceptors after this one, do not see the headers, and no key is in the
// context. What is in the headers is not looked at, so that even what would be refused
// of a trusted caller does no harm.
func Strip() Untrusted { return Untrusted{mode: stripping} }

// Sealed takes from untrusted callers what sealer has sealed for them, and seals what
// they are told: an outside client can come back to the server that it was on, by what it
// got in the last answer, and name no other.
//
// subject returns who the caller is, by which sealed values are bound to it: the user that
// has logged in, not something that the caller chooses. It is called once for each call,
// with the context that trusted gets, and must be safe for concurrent use. An empty
// subject has nothing sealed, and nothing opens for it.
//
// A sealed id is opened, and the handler sees the plain one in the incoming metadata. One
// that says of itself that it has expired is none: it is but a wish, and the answer
// brings a new one. A sealed key is opened likewise, and is in the handler's context as if
// by [WithKey]. One that has expired is answered with code PermissionDenied and
// [ExpiredReason], for without it the call would be about something else. All that does
// not open is answered with code PermissionDenied before the handler runs, and two
// different values of one header with code InvalidArgument.
//
// With [WithServerID] answers are signed with the sealed id; the id that [Moved] names is
// sealed, too. Both are what the interceptors of this package send back, so a [Session]
// of a client outside works as with plain ids, if something on the way opens them: a
// gateway, whose handlers call servers [With] the plain id, or a proxy by
// [Sealer.OpenID]. A gateway does not use WithServerID; its handlers set [IDHeader] to the
// sealed id of the server that they called. A session outside has no key, or a sealed one.
//
// A nil or unmade sealer, or a nil subject, is a server set up wrongly: every call is
// answered with code Internal.
func Sealed(sealer *Sealer, subject func(ctx context.Context) string) Untrusted {
	return Untrusted{sealing, sealer, subject}
}

// WithTrust makes the server interceptors tell callers apart: what trusted ones say in
// [IDHeader] and [KeyHeader] is taken as it is, what others say is treated as otherwise
// has it. Others are not told of servers either: their answers are not signed
// ([WithServerID]), and what a handler says of [Moved] reaches them without the id, unless
// they are told by [Sealed] ids.
//
// trusted is called once for each call, before the handler, with the context of the call
// as it is at that point in the chain of interceptors: one that authenticates has to
// come before, if trusted needs what that finds. It must be safe for concurrent use. A
// nil one trusts nobody. A good one goes by what the transport has proven, like the name
// in a client's certificate ([google.golang.org/grpc/credentials.TLSInfo] of
// [google.golang.org/grpc/peer.FromContext]). A proxy that passes on headers of callers
// outside is itself no caller to be trusted.
//
// Headers whose names only look alike, such as "affinity-id-bin", are never read, and
// left alone. The default is that all callers are trusted. Used twice, the last one
// holds.
func WithTrust(trusted func(ctx context.Context) bool, otherwise Untrusted) ServerOption {
	t := &trust{trusted: trusted, otherwise: otherwise}
	if otherwise.mode == sealing && (!otherwise.sealer.made() || otherwise.subject == nil) {
		t.err = status.Error(codes.Internal, "affinity: WithTrust: Sealed needs a sealer made by NewSealer, and a subject")
	}
	return serverOptionFunc(func(o *serverOptions) { o.trust = t })
}

// trust is what WithTrust was given.
type trust struct {
	trusted   func(context.Context) bool
	otherwise Untrusted
	err       error // the answer to every call, nil if the option is sound
}

func (t *trust) wrong() error {
	if t == nil {
		return nil
	}
	return t.err
}

// outside returns how the caller of ctx is treated, nil if like one of us.
func (t *trust) outside(ctx context.Context) *Untrusted {
	if t == nil || t.trusted != nil && t.trusted(ctx) {
		return nil
	}
	return &t.otherwise
}
