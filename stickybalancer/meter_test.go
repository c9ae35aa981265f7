package stickybalancer

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/balancer"
	estats "google.golang.org/grpc/experimental/stats"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/callctx"
	"github.com/homing-grpc/homing/internal/metricstest"
	"github.com/homing-grpc/homing/internal/session"
)

// listRecorder asks for each descriptor once more, as the list does that gRPC puts
// before recorders.
type listRecorder struct{ *metricstest.Recorder }

func (l listRecorder) RegisterAsyncReporter(a estats.AsyncMetricReporter, metrics ...estats.AsyncMetric) func() {
	for _, m := range metrics {
		m.Descriptor()
	}
	return l.Recorder.RegisterAsyncReporter(a, metrics...)
}

func TestAPickerThatNobodyRecordsCountsNothing(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"))
		d.up("a")
		require.IsType(t, &picker{}, d.current().Picker)
		require.Nil(t, d.current().Picker.(*picker).meter)
	})
}

func TestRecordedPicksAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	driveWith(t, listRecorder{new(metricstest.Recorder)}, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		d.up("a", "b")
		require.IsType(t, counted{}, d.current().Picker)
		held := affinity.NewSession("k").Context(bg)
		d.end(held)(answered)
		for _, ctx := range []context.Context{bg, callctx.WithNoHeaders(bg), with("a"), key("k"), held} {
			picker, info := d.current().Picker, balancer.PickInfo{Ctx: ctx}
			require.Zero(t, testing.AllocsPerRun(100, func() {
				if _, err := picker.Pick(info); err != nil {
					panic(err)
				}
			}))
		}
	})
}

func TestRecordedPicksGoWherePlainOnesGo(t *testing.T) {
	where := func(r estats.MetricsRecorder) (went []string) {
		driveWith(t, r, `{}`, func(t *testing.T, d *driver) {
			var eps []resolver.Endpoint
			for _, id := range []string{"a", "b", "c", "d"} {
				eps = append(eps, ep(id))
			}
			d.list(eps...)
			d.up("a", "b", "c", "d")
			for _, k := range []string{"k", "l", "m", "n", "o", "p", "q"} {
				for _, ctx := range []context.Context{key(k), with(k), affinity.NewSession(k).Context(bg)} {
					if res, err := d.current().Picker.Pick(balancer.PickInfo{Ctx: ctx}); err == nil {
						went = append(went, res.SubConn.(*fakeConn).addr)
					} else {
						went = append(went, err.Error())
					}
				}
			}
		})
		return went
	}
	require.Equal(t, where(nil), where(listRecorder{new(metricstest.Recorder)}))
}

func TestAMoveThatIsConfirmedUnderTheNextPolicyIsCounted(t *testing.T) {
	rec := new(metricstest.Recorder)
	driveWith(t, listRecorder{rec}, `{"reconnectWindow":"0s","absentGrace":"0s"}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		d.up("a", "b")
		s := new(session.Session)
		d.end(callctx.With(bg, callctx.Value{ID: "a", Session: s, Moved: true}))(answered)
		d.list(ep("b"))
		ctx := callctx.With(bg, callctx.Value{Session: s})
		d.end(ctx)(balancer.DoneInfo{BytesSent: true}) // never answered
		target := d.lb.(*policy).target.Value()
		d.lb.Close() // idle
		synctest.Wait()
		d.lb = balancer.Get(Name).Build(d.channel, balancer.BuildOptions{})
		d.list(ep("b"))
		d.up("b")
		d.end(ctx)(answered)
		require.Equal(t, "b", s.Bind(d.lb.(*policy).target).Lives().ID)
		require.EqualValues(t, 1, rec.Collect()[metricstest.Key(metricPrefix+"rehomed_sessions", target, "gone")])
	})
}

// labelled is a recorder that cannot be compared.
type labelled struct {
	listRecorder
	labels []string
}

func TestARecorderNeedNotBeComparable(t *testing.T) {
	rec := new(metricstest.Recorder)
	driveWith(t, labelled{listRecorder{rec}, []string{"x"}}, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"))
		ctx, cancel := context.WithCancel(bg)
		defer cancel()
		_, err := d.current().Picker.Pick(balancer.PickInfo{Ctx: ctx})
		require.Equal(t, balancer.ErrNoSubConnAvailable, err)
		d.up("a")
		_, err = d.current().Picker.Pick(balancer.PickInfo{Ctx: ctx})
		require.NoError(t, err)
		require.Len(t, rec.Histo(metricPrefix+"queue_duration", d.lb.(*policy).target.Value(), "round_robin"), 1)
	})
	require.Empty(t, channels.held)
}
