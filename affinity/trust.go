package affinity

import (
	"context"
	"slices"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/homing-grpc/homing/internal/session"
)

// Untrusted is what becomes of the ids and keys of callers that are not trusted:
// [Refuse], [Strip]. The zero value is Refuse.
type Untrusted struct{ mode mode }

type mode uint8

const (
	refusing mode = iota
	stripping
)

// Refuse answers calls of untrusted callers that carry an id or a key with code
// PermissionDenied, before the handler runs. The error names the header.
func Refuse() Untrusted { return Untrusted{mode: refusing} }

// Strip lets calls of untrusted callers through without their ids and keys: the handler,
// and the interceptors after this one, do not see the headers, and no key is in the
// context. What is in the headers is not looked at, so that even what would be refused
// of a trusted caller does no harm.
func Strip() Untrusted { return Untrusted{mode: stripping} }

// WithTrust makes the server interceptors tell callers apart: what trusted ones say in
// [IDHeader] and [KeyHeader] is taken as it is, what others say is treated as otherwise
// has it. Others are not told of servers either: their answers are not signed
// ([WithServerID]), and what a handler says of [Moved] reaches them without the id.
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
	return serverOptionFunc(func(o *serverOptions) { o.trust = &trust{trusted, otherwise} })
}

// trust is what WithTrust was given.
type trust struct {
	trusted   func(context.Context) bool
	otherwise Untrusted
}

// outside returns how the caller of ctx is treated, nil if like one of us.
func (t *trust) outside(ctx context.Context) *Untrusted {
	if t == nil || t.trusted != nil && t.trusted(ctx) {
		return nil
	}
	return &t.otherwise
}

// admit returns ctx with what the handler may know of the headers of a caller outside.
func (u *Untrusted) admit(ctx context.Context) (context.Context, error) {
	ids := metadata.ValueFromIncomingContext(ctx, IDHeader)
	keys := metadata.ValueFromIncomingContext(ctx, KeyHeader)
	if len(ids) == 0 && len(keys) == 0 {
		return ctx, nil
	}
	if u.mode == refusing {
		for _, h := range []struct {
			name   string
			values []string
		}{{IDHeader, ids}, {KeyHeader, keys}} {
			if slices.ContainsFunc(h.values, func(v string) bool { return v != "" }) {
				return nil, status.Errorf(codes.PermissionDenied, "affinity: incoming header %s: the caller is not trusted to say where its calls go", h.name)
			}
		}
	}
	return incomingWith(ctx, "", ""), nil
}

// incomingWith returns ctx with these, and no other, affinity headers; "" is none.
func incomingWith(ctx context.Context, id, key string) context.Context {
	md, _ := metadata.FromIncomingContext(ctx) // a copy, with names in lower case
	for name, v := range map[string]string{IDHeader: id, KeyHeader: key} {
		delete(md, name)
		if v != "" {
			md[name] = []string{v}
		}
	}
	return metadata.NewIncomingContext(ctx, md)
}

// caller is who made a call, as far as that decides what it is told of servers.
type caller struct {
	stamp   metadata.MD // signs answers to it, nil for not
	outside *Untrusted  // nil if it is one of us
}

// told is err as the caller may see it. The id of the server that the state is on is in
// a detail, and may be in the text.
func (c caller) told(err error) error {
	if c.outside == nil {
		return err
	}
	if _, moved := session.Elsewhere(err); !moved {
		return err
	}
	s, _ := status.FromError(err)
	p := s.Proto()
	for i, d := range p.GetDetails() {
		info := new(errdetails.ErrorInfo)
		if d.UnmarshalTo(info) != nil || info.GetReason() != MovedReason || info.GetDomain() != MovedDomain || info.GetMetadata()["id"] == "" {
			continue
		}
		info.Metadata = map[string]string{"id": ""}
		hidden, err := anypb.New(info)
		if err != nil {
			return status.Error(codes.Internal, "affinity: the state is on another server")
		}
		p.Details[i], p.Message = hidden, "affinity: the state is on another server"
	}
	return status.ErrorProto(p)
}
