package affinity

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/internal/sealed"
)

// admit returns ctx with what the handler may know of the headers of a caller outside,
// and what the caller may know of servers. stamp is that for callers inside.
func (u *Untrusted) admit(ctx context.Context, stamp metadata.MD) (context.Context, caller, error) {
	from := caller{outside: u}
	if u.mode == sealing {
		from.subject = u.subject(ctx)
		if stamp != nil {
			if id := from.sealed(stamp[IDHeader][0]); id != "" {
				from.stamp = metadata.MD{IDHeader: {id}}
			}
		}
	}
	ids := metadata.ValueFromIncomingContext(ctx, IDHeader)
	keys := metadata.ValueFromIncomingContext(ctx, KeyHeader)
	if len(ids) == 0 && len(keys) == 0 {
		return ctx, from, nil
	}
	var id, key string
	var err error
	switch u.mode {
	case stripping:
	case sealing:
		if id, err = u.openID(ids, from.subject); err == nil {
			key, err = u.openKey(keys, from.subject)
		}
	default:
		if err = untrusted(IDHeader, ids); err == nil {
			err = untrusted(KeyHeader, keys)
		}
	}
	if err != nil {
		return nil, from, err
	}
	return withIncoming(incomingWith(ctx, id, key), key), from, nil
}

// untrusted refuses a header that says anything.
func untrusted(header string, values []string) error {
	if slices.ContainsFunc(values, func(v string) bool { return v != "" }) {
		return denied(header, "the caller is not trusted to say where its calls go").Err()
	}
	return nil
}

func (u *Untrusted) openID(values []string, subject string) (string, error) {
	text, err := single("incoming", IDHeader, values, opens)
	if err != nil || text == "" || sealed.SaysExpired(text, time.Now()) {
		return "", err
	}
	id, err := u.sealer.OpenID(text, subject)
	if err != nil && !errors.Is(err, ErrExpired) {
		return "", denied(IDHeader, sealed.ErrForged.Error()).Err()
	}
	return id, nil
}

func (u *Untrusted) openKey(values []string, subject string) (string, error) {
	text, err := single("incoming", KeyHeader, values, opens)
	if err != nil || text == "" {
		return "", err
	}
	key, err := u.sealer.OpenKey(text, subject)
	switch {
	case errors.Is(err, ErrExpired):
		s := denied(KeyHeader, ErrExpired.Error())
		info := &errdetails.ErrorInfo{Reason: ExpiredReason, Domain: MovedDomain, Metadata: map[string]string{"header": KeyHeader}}
		if detailed, err := s.WithDetails(info); err == nil {
			s = detailed
		}
		return "", s.Err()
	case err != nil:
		return "", denied(KeyHeader, sealed.ErrForged.Error()).Err()
	}
	return key, nil
}

// opens finds no fault with a value: the sealer does, in one way with all.
func opens(string) string { return "" }

func denied(header, why string) *status.Status {
	return status.Newf(codes.PermissionDenied, "affinity: incoming header %s: %s", header, why)
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
