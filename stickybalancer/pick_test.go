package stickybalancer

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/internal/callctx"
)

// A status error would end wait-for-ready calls and bypass retries, one of seven
// codes would even become Internal (gRFC A54), and status looks through %w.
func TestAnErrorOfOursIsNeverAStatus(t *testing.T) {
	cause := status.Error(codes.FailedPrecondition, "the handshake says no")
	lost := newServer("lost", 0)
	lost.view.Store(&view{phase: away, known: true, unready: &unready{err: cause}})
	left := newServer("left", 0)
	lost.listed = true
	var ids idTable
	ids.put(lost)
	ids.put(left)
	all := newMembers(ids, []*server{lost, left}, nil)
	p := &picker{
		cfg:     &lbConfig{},
		members: all,
		homes:   newHomeBook(&policy{members: all}),
		turns:   &counter{},
		err:     balancer.ErrNoSubConnAvailable,
		settled: true,

		revision: new(atomic.Uint64),
	}
	p.homes.wanted.Store(true) // no table, please
	for _, v := range []callctx.Value{
		{ID: "lost", Required: true}, {ID: "left", Required: true}, {ID: "nobody", Required: true},
		{ID: "lost"}, {Key: "k"},
	} {
		_, err := p.Pick(balancer.PickInfo{Ctx: callctx.With(context.Background(), v)})
		require.Error(t, err, "%+v", v)
		require.NotEqual(t, balancer.ErrNoSubConnAvailable, err, "%+v", v)
		_, is := status.FromError(err)
		require.False(t, is, "%+v: %v", v, err)
	}
}
