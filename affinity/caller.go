package affinity

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/homing-grpc/homing/internal/session"
)

// caller is who made a call, as far as that decides what it is told of servers.
type caller struct {
	stamp   metadata.MD // signs answers to it, nil for not
	outside *Untrusted  // nil if it is one of us
	subject string      // whose sealed values it may show, "" for none
}

// sealed returns the id of a server as a caller outside may know it, "" if not at all.
func (c caller) sealed(id string) string {
	if c.outside.mode != sealing {
		return ""
	}
	text, err := c.outside.sealer.SealID(id, c.subject)
	if err != nil {
		return "" // it has no subject, or a handler made the id up
	}
	return text
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
		info.Metadata = map[string]string{"id": c.sealed(info.GetMetadata()["id"])}
		hidden, err := anypb.New(info)
		if err != nil {
			return status.Error(codes.Internal, "affinity: the state is on another server")
		}
		p.Details[i], p.Message = hidden, "affinity: the state is on another server"
	}
	return status.ErrorProto(p)
}
