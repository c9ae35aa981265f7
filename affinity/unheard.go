package affinity

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/metadata"

	"github.com/homing-grpc/homing/internal/sealed"
)

var logger = grpclog.Component("affinity")

// mostAsks bounds how many calls are looked at where nothing ever shows, as behind a proxy
// that finds every server.
const mostAsks = 100

// policy is what the interceptors of a channel know of who picks there. A channel that was
// made without the service config has gRPC's pick_first, which sends all calls to one
// server, whatever server they name, and nobody is told.
type policy struct {
	asks atomic.Int32 // calls that were looked at, or mostAsks as soon as it is known
}

// inDoubt reports whether a call can tell whose policy it is: one that names a server.
func (p *policy) inDoubt(c *call) bool {
	return c.binding == nil && c.value != nil && c.value.ID != "" && p.asks.Load() < mostAsks
}

// invoke makes a unary call that names a server. A proxy that goes by headers reaches that
// one, too, under any policy: so it takes the answer of another to say that nobody looks.
func (p *policy) invoke(c *call, do func(context.Context, ...grpc.CallOption) error) error {
	p.asks.Add(1)
	c.trace()
	out, err := outgoing(c.ctx, "")
	if err != nil {
		return err
	}
	var header, trailer metadata.MD
	err = do(out, grpc.Header(&header), grpc.Trailer(&trailer))
	by := signer(header, trailer)
	switch {
	case c.route.Last() != nil:
		p.asks.Store(mostAsks)
	case by != "" && by != c.value.ID && !sealed.Same(by, c.value.ID) && p.asks.Swap(mostAsks) < mostAsks:
		logger.Warning("a call that names a server was answered by another one, and no custom_round_robin policy has sent it there: " +
			"such calls go anywhere. Give the channel grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()). " +
			"Only if it leads to a proxy, which reads the id itself and could not reach that server, all is well")
	}
	return err
}
