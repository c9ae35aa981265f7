// Package collect has recorders of metrics collect gauges, and finds out whether there is
// anybody who does.
package collect

import (
	"sync/atomic"

	estats "google.golang.org/grpc/experimental/stats"
)

// Gauges makes r collect the gauges from reporter until stop is called. It reports
// whether anybody is behind r, as far as that can be told: gRPC has no question for it.
// But the list that it keeps of a channel's recorders asks for each descriptor once, and
// each recorder in it has to ask again.
func Gauges(r estats.MetricsRecorder, reporter estats.AsyncMetricReporter, handles ...*estats.Int64AsyncGaugeHandle) (stop func(), recorded bool) {
	times := new(atomic.Int64) // a recorder may go on to ask
	all := make([]estats.AsyncMetric, len(handles))
	for i, h := range handles {
		all[i] = asked{h, times}
	}
	stop = r.RegisterAsyncReporter(reporter, all...)
	return stop, times.Load() > int64(len(handles))
}

// asked is a gauge that notes how often somebody wants to know which one it is.
type asked struct {
	*estats.Int64AsyncGaugeHandle
	times *atomic.Int64
}

func (a asked) Descriptor() *estats.MetricDescriptor {
	a.times.Add(1)
	return a.Int64AsyncGaugeHandle.Descriptor()
}
