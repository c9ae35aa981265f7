package stickybalancer

import (
	estats "google.golang.org/grpc/experimental/stats"
)

// What follows is declared as gRFC A79 has it, in a name space of our own: "grpc." is
// gRPC's. All are on by default. Those of picks and of sessions are counted here, and
// recorded when the gauges are collected, so that a pick costs no call of a recorder.

const (
	metricPrefix = "homing.lb." + Name + "."

	targetLabel = "grpc.target"   // the channel's canonical one, as in gRPC's own metrics
	reasonLabel = "homing.reason" // bounded: the Why constants, or the Reason ones, of package affinity
)

// neverSent is the reason of attempts that were held and that no policy of ours sent.
const neverSent = "none"

var (
	picksMetric = estats.RegisterInt64Count(estats.MetricDescriptor{
		Name:        metricPrefix + "picks",
		Description: "EXPERIMENTAL. Number of picks of a server, by why it was that server. An attempt is picked for again, and counted again, if the connection broke before it was sent.",
		Unit:        "{pick}",
		Labels:      []string{targetLabel, reasonLabel},
		Default:     true,
	})
	queueMetric = estats.RegisterFloat64Histo(estats.MetricDescriptor{
		Name: metricPrefix + "queue_duration",
		Description: "EXPERIMENTAL. Time for which an attempt was held until there was a server for it, by why it was that server; " +
			neverSent + ": the call ended first, or a policy of another name sent it.",
		Unit:    "s",
		Labels:  []string{targetLabel, reasonLabel},
		Default: true,
		Bounds:  []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	})
	sessionsMetric = estats.RegisterInt64Count(estats.MetricDescriptor{
		Name:        metricPrefix + "rehomed_sessions",
		Description: "EXPERIMENTAL. Number of sessions that left the state behind that a server held for them, by why.",
		Unit:        "{session}",
		Labels:      []string{targetLabel, reasonLabel},
		Default:     true,
	})
	endpointMetrics = [endpointKinds]*estats.Int64AsyncGaugeHandle{
		knownEndpoints:    endpointMetric("known_endpoints", "Number of endpoints that are in the resolver's list, or kept."),
		readyEndpoints:    endpointMetric("ready_endpoints", "Number of known endpoints whose connection is READY."),
		drainingEndpoints: endpointMetric("draining_endpoints", "Number of known endpoints that take nothing new: they say so, or their health check does."),
		keptEndpoints:     endpointMetric("kept_endpoints", "Number of known endpoints that the resolver's list has lost while their connection is READY."),
	}
)

// The kinds of endpoints that are counted; one can be of several.
const (
	knownEndpoints = iota
	readyEndpoints
	drainingEndpoints
	keptEndpoints
	endpointKinds
)

func endpointMetric(name, description string) *estats.Int64AsyncGaugeHandle {
	return estats.RegisterInt64AsyncGauge(estats.MetricDescriptor{
		Name:        metricPrefix + name,
		Description: "EXPERIMENTAL. " + description + " Summed up over the process's channels of one target that are recorded, by whichever recorder.",
		Unit:        "{endpoint}",
		Labels:      []string{targetLabel},
		Default:     true,
	})
}

// is reports whether a server with this view is an endpoint of that kind.
func (v *view) is(kind int) bool {
	switch kind {
	case readyEndpoints:
		return v.known && v.phase == ready
	case drainingEndpoints:
		return v.known && v.draining
	case keptEndpoints:
		return v.kept
	}
	return v.known
}
