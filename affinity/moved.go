package affinity

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/internal/session"
)

const (
	// MovedReason and MovedDomain are those of the
	// [google.golang.org/genproto/googleapis/rpc/errdetails.ErrorInfo] by which a
	// status says that the state is elsewhere. Its metadata has the server's id under
	// "id", "" if it is not known.
	MovedReason = session.MovedReason
	MovedDomain = session.MovedDomain

	// ReleaseTrailer is in the trailer of a call after which the server holds nothing
	// for the session any more; its value is "1".
	ReleaseTrailer = "affinity-release"
)

// Moved returns the error by which a handler says that the state that the call is
// about is on the server with this id: a status with code FailedPrecondition and a
// standard detail that clients in all languages can read ([MovedReason]).
//
// The unary client interceptor goes there once, within the call's deadline, and the
// caller sees the answer of that server. If that one says Moved, too, the caller gets
// an error that names both. A call that was made with [Require] is not sent elsewhere.
// A stream gets the error. Either way the call's [Session] goes to that server from
// now on.
//
// This is what makes clients agree that bound a key before and after a server joined:
// a server that does not own a key's state, by whatever the service fences its storage
// with, says who does.
func Moved(id string) error {
	if why := problem(id); why != "" || id == "" {
		return status.Errorf(codes.Internal, "affinity: Moved: server id %s must be printable ASCII of 1 to %d bytes", quote(id), maxValue)
	}
	return movedStatus(codes.FailedPrecondition, id, fmt.Sprintf("the state is on server %q", id))
}

// MovedTo returns the id of the server that has the state, if err says so: one that
// [Moved] returned, here or on a server; that of a stream whose session has moved
// away; or that of a stream that a draining server ended, or of a call that servers
// behind a fence refused ([WithFence]), which do not know where the state will be, and
// give "". It looks through wrapped errors.
func MovedTo(err error) (id string, ok bool) {
	id, ok = session.Elsewhere(err)
	if unfit(id) != "" {
		return "", false
	}
	return id, ok
}

func movedStatus(code codes.Code, id, message string) error {
	return movedInfo(code, map[string]string{"id": id}, message)
}

func movedInfo(code codes.Code, info map[string]string, message string) error {
	s, err := status.New(code, "affinity: "+message).WithDetails(&errdetails.ErrorInfo{
		Reason:   MovedReason,
		Domain:   MovedDomain,
		Metadata: info,
	})
	if err != nil {
		return status.Error(codes.Internal, "affinity: "+message+": "+err.Error())
	}
	return s.Err()
}

// Release says, in a handler, that the server holds nothing for the session any more:
// its user has logged out. The session lives nowhere then, once the call has ended, and
// its next call may go anywhere. The client has to have the interceptors. ctx is the
// handler's; it is an error if ctx is not of a call that is being served, or the call
// has ended.
func Release(ctx context.Context) error {
	if grpc.ServerTransportStreamFromContext(ctx) == nil {
		return errors.New("affinity: Release: the context must be that of a handler")
	}
	if err := grpc.SetTrailer(ctx, metadata.Pairs(ReleaseTrailer, "1")); err != nil {
		return fmt.Errorf("affinity: Release: %w", err)
	}
	return nil
}

func released(trailer metadata.MD) bool {
	v := trailer[ReleaseTrailer]
	return len(v) > 0 && v[0] == "1"
}
