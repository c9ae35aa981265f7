// Package otelaffinity notes on OpenTelemetry spans where calls went and why.
//
//	conn, err := grpc.NewClient(target, append(affinity.DialOptions(),
//		opentelemetry.DialOption(…),                          // or otelgrpc's stats handler
//		grpc.WithStatsHandler(otelaffinity.NewClientHandler()), …)...)
//
// It is a module of its own, so that programs without OpenTelemetry need not have it.
// Metrics need nothing of it: gRPC's OpenTelemetry plugin exports those of package
// stickybalancer.
package otelaffinity

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/stats"

	"github.com/homing-grpc/homing/affinity"
)

// The attributes of a span.
const (
	ReasonKey   = attribute.Key("homing.reason")    // string: why that server, one of the Why constants of package affinity
	ServerIDKey = attribute.Key("homing.server_id") // string: the server that the call was sent to
	WaitedKey   = attribute.Key("homing.waited")    // bool: true if it had to wait for a server to be READY, else absent
)

// NewClientHandler returns a handler for [google.golang.org/grpc.WithStatsHandler] that
// sets attributes on the span in each attempt's context, when the attempt is sent: one that
// never is, for its deadline came first, has none. That span is the attempt's own where
// another stats handler makes one, as those of gRPC's OpenTelemetry plugin and of otelgrpc
// do, so each retry tells of itself; and otherwise the caller's, where the last one wins.
//
// Install it after that other handler. Before it, it does not see the attempt's span in
// time, and tells only of calls whose caller has a span that records.
//
// A span that does not record costs nothing but the question. The handler is safe for
// concurrent use, and may serve many channels. It is of no use to servers.
func NewClientHandler() stats.Handler { return handler{} }

type handler struct{}

type routeKey struct{}

// TagRPC has the balancer tell where the attempt goes.
func (handler) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	if !trace.SpanFromContext(ctx).IsRecording() {
		return ctx
	}
	r := new(affinity.Route)
	return context.WithValue(affinity.Observe(ctx, r), routeKey{}, r)
}

// HandleRPC waits until that is known.
func (handler) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if out, sent := s.(*stats.OutHeader); !sent || !out.Client { // or a server's answer
		return
	}
	r, _ := ctx.Value(routeKey{}).(*affinity.Route)
	if r == nil || r.Reason() == "" { // of another balancer's
		return
	}
	span := trace.SpanFromContext(ctx)
	span.SetAttributes(ReasonKey.String(r.Reason()), ServerIDKey.String(r.ID()))
	if r.Waited() {
		span.SetAttributes(WaitedKey.Bool(true))
	}
}

func (handler) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (handler) HandleConn(context.Context, stats.ConnStats) {}
