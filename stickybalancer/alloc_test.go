package stickybalancer

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/callctx"
)

// raceEnabled is set by race_test.go: the race detector allocates.
var raceEnabled bool

func TestPicksAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	others := metadata.AppendToOutgoingContext(bg, "authorization", "Bearer x", "x-request-id", "1", "traceparent", "00-0-0-00")
	for _, tc := range []struct {
		name   string
		config string
		ctx    context.Context
		want   float64
	}{
		{"nothing, marked", `{}`, callctx.WithNoHeaders(bg), 0},
		{"nothing, marked, among other headers", `{}`, callctx.WithNoHeaders(others), 0},
		{"nothing, no metadata", `{}`, bg, 0},
		{"nothing, other metadata", `{}`, others, 0},
		{"nothing, headers off", `{"idHeader": "", "keyHeader": ""}`, others, 0},
		{"id in ctx", `{}`, with("s7"), 0},
		{"required id in ctx", `{}`, must("s7"), 0},
		{"id and key in ctx", `{}`, with2("s7", "k"), 0},
		{"key in ctx", `{}`, key("k"), 0},
		{"confirmed session", `{}`, affinity.NewSession("k").Context(bg), 0},
		{"id that refused", `{}`, past(with("s7"), "s7"), 3},
		{"key that one refused", `{}`, past(key("k"), "s7"), 3},
		{"id nobody has", `{"reconnectWindow": "0s"}`, with("nobody"), 0},
		{"id in metadata", `{}`, metadata.AppendToOutgoingContext(others, affinity.IDHeader, "s7"), 1},
		{"key in metadata", `{}`, metadata.AppendToOutgoingContext(others, affinity.KeyHeader, "k"), 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			drive(t, tc.config, func(t *testing.T, d *driver) {
				var eps []resolver.Endpoint
				var all []string
				for i := range 10 {
					id := fmt.Sprint("s", i)
					eps, all = append(eps, ep(id, weighs(uint32(i)))), append(all, id)
				}
				d.list(eps...)
				d.up(all...)
				if done := d.end(tc.ctx); done != nil {
					done(answered) // a session's first
				}
				picker, info := d.current().Picker, balancer.PickInfo{Ctx: tc.ctx, FullMethodName: "/s/m"}
				got := testing.AllocsPerRun(1000, func() {
					if _, err := picker.Pick(info); err != nil {
						panic(err)
					}
				})
				require.Equal(t, tc.want, got)
			})
		})
	}
}

// Parents of the policy do so: those of RLS and of xDS.
func TestAParentMayAddToTheMetadataOfARefusedCall(t *testing.T) {
	drive(t, `{}`, func(t *testing.T, d *driver) {
		d.list(ep("a"), ep("b"))
		d.up("a", "b")
		pick := func() balancer.PickResult {
			r, err := d.current().Picker.Pick(balancer.PickInfo{Ctx: past(key("k"), "a")})
			require.NoError(t, err)
			return r
		}
		md := pick().Metadata
		require.Equal(t, []string{"1"}, md.Get(callctx.RefusedHeader))
		md.Append("x-of-a-parent", "1")
		require.NotContains(t, pick().Metadata, "x-of-a-parent")
	})
}

func past(ctx context.Context, ids ...string) context.Context {
	v := *callctx.From(ctx)
	v.Not = ids
	return callctx.With(ctx, v)
}

// end picks once and returns how to end that.
func (d *driver) end(ctx context.Context) func(balancer.DoneInfo) {
	r, err := d.current().Picker.Pick(balancer.PickInfo{Ctx: ctx})
	require.NoError(d.t, err)
	return r.Done
}
