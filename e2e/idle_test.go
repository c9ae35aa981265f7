package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

// An idle channel has neither resolver nor balancer: what a session knows is its own.
func TestASessionIsAtHomeAfterItsChannelWasIdle(t *testing.T) {
	cli := startEtcd(t).newClient()
	register(t, cli, startServer(t, "a"))
	c := newChannel(t, cli, stickybalancer.Config{}, grpc.WithIdleTimeout(300*time.Millisecond))
	c.sees("a")
	session, keyed := affinity.NewSession(""), affinity.NewSession("player-7")
	moved := make(chan affinity.Move, 10)
	for _, s := range []*affinity.Session{session, keyed} {
		s.OnMove(func(m affinity.Move) { moved <- m })
		c.reaches("a", s.Context(bg))
	}
	for _, id := range []string{"b", "c", "d"} { // some of them are home to the key
		register(t, cli, startServer(t, id))
	}
	soon(t, func() bool { return c.conn.GetState() == connectivity.Idle }, "the channel idles")
	c.reaches("a", session.Context(bg))
	soon(t, func() bool { return c.conn.GetState() == connectivity.Idle }, "the channel idles again")
	c.reaches("a", keyed.Context(bg))
	require.Empty(t, moved)
}
