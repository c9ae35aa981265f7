package session

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// These are the ErrorInfo by which a status says that the state is elsewhere.
const (
	MovedReason = "AFFINITY_MOVED"
	MovedDomain = "homing-grpc.github.com"

	// FencedKey is in the metadata of those of a server that refuses the call itself; its
	// value is that server's id, "" if it does not know it. It is also in those that a
	// caller gets in the end.
	FencedKey = "fenced"

	// PassedOnKey is in the metadata of those by which a handler passes on that another
	// server refused a call of its own; its value is "1".
	PassedOnKey = "passed-on"
)

// Elsewhere returns the id of the server that has the state, "" if that is not known,
// and whether err says that it is elsewhere.
func Elsewhere(err error) (id string, ok bool) {
	info := moved(err)
	return info.GetMetadata()["id"], info != nil
}

// Fenced returns the id of the server that refused the call, "" if that is not known,
// and whether err says that one did.
func Fenced(err error) (by string, ok bool) {
	by, ok = moved(err).GetMetadata()[FencedKey]
	return by, ok
}

// PassedOn reports whether err says that another server refused a call that the handler
// made: that one is the server of the session only if the handler is a proxy.
func PassedOn(err error) bool { return moved(err).GetMetadata()[PassedOnKey] != "" }

func moved(err error) *errdetails.ErrorInfo {
	if err == nil {
		return nil
	}
	s, isStatus := status.FromError(err)
	if !isStatus {
		return nil
	}
	for _, d := range s.Details() {
		info, is := d.(*errdetails.ErrorInfo)
		if is && info.GetReason() == MovedReason && info.GetDomain() == MovedDomain {
			return info
		}
	}
	return nil
}

// elsewhere reports whether the answer to an attempt said that the state is elsewhere.
func elsewhere(info balancer.DoneInfo) bool {
	err := info.Err
	if err == nil {
		// That may be a failure, which the attempt met in sending.
		details := info.Trailer["grpc-status-details-bin"]
		if len(details) == 0 {
			return false
		}
		var p spb.Status
		if proto.Unmarshal([]byte(details[0]), &p) != nil {
			return false
		}
		err = status.ErrorProto(&p)
	}
	_, ok := Elsewhere(err)
	return ok
}
