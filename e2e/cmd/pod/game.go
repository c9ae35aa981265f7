package main

import (
	"context"
	"io"
	"time"

	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// game answers with its name, after as long as the request says.
type game struct {
	testpb.UnimplementedTestServiceServer
	name string
}

func (g game) UnaryCall(ctx context.Context, r *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if d, err := time.ParseDuration(string(r.GetPayload().GetBody())); err == nil {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &testpb.SimpleResponse{Hostname: g.name}, nil
}

func (g game) FullDuplexCall(stream testpb.TestService_FullDuplexCallServer) error {
	for {
		switch _, err := stream.Recv(); err {
		case nil:
		case io.EOF:
			return nil
		default:
			return err
		}
		answer := &testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: []byte(g.name)}}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}
