package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/examples/stateful-game/gamepb"
)

// runClient plays as one player until ctx is done, and tells of each call. The
// player begins on server id, "" for whatever server comes next.
func runClient(ctx context.Context, out io.Writer, cli *clientv3.Client, service, name, id string, every time.Duration) error {
	conn, err := dial(cli, service)
	if err != nil {
		return err
	}
	defer conn.Close()

	p := &player{name: name, client: gamepb.NewGameClient(conn), tally: new(tally)}
	p.on = func(e playerEvent) { fmt.Fprintln(out, "  "+tellClient(e)) }
	defer p.stand()

	first := affinity.With(ctx, id)
	next := time.NewTicker(every)
	defer next.Stop()
	for n := 1; ; n++ {
		if p.home == "" {
			// Only this call says where the player wants to be: from here on the
			// player knows.
			err = p.join(first)
		}
		if p.home != "" {
			err = p.step(ctx, walk(n))
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			fmt.Fprintf(out, "call %d: no answer: %s\n", n, reason(err))
		default:
			fmt.Fprintf(out, "call %d: server %s answered: score %d, at (%d,%d)\n",
				n, p.home, p.last.GetScore(), p.last.GetX(), p.last.GetY())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
		}
	}
}

// reason is what an error says in the end. Where gRPC has retried a call, the
// last attempt's error is inside.
func reason(err error) string {
	message := status.Convert(err).Message()
	if _, inner, ok := strings.Cut(message, " desc = "); ok {
		return inner
	}
	return message
}

// walk is a way round a square.
func walk(n int) gamepb.Direction {
	return gamepb.Direction(n%4) + gamepb.Direction_NORTH
}

func tellClient(e playerEvent) string {
	switch e.kind {
	case came:
		if e.known {
			return fmt.Sprintf("server %s knows %s: welcome back, score %d", e.to, e.player, e.points)
		}
		return fmt.Sprintf("server %s has not met %s: a new game", e.to, e.player)
	case carried:
		return fmt.Sprintf("server %s leaves: %s goes to server %s and takes %d points along", e.from, e.player, e.to, e.points)
	case lost:
		return fmt.Sprintf("server %s is gone: %s lands on server %s, and %d points are lost", e.from, e.player, cmp.Or(e.to, "?"), e.points)
	default:
		return fmt.Sprintf("server %s answers in place of server %s", e.to, e.from)
	}
}
