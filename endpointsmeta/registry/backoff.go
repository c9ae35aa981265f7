package registry

import (
	"context"
	"math/rand/v2"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// backoff paces retries: from 50 ms to a second, so that etcd's return is seen
// within two, with jitter, so that not all of a fleet comes at once.
type backoff struct{ last time.Duration }

func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, 50*time.Millisecond), time.Second)
	return b.last/2 + rand.N(b.last/2)
}

func (b *backoff) reset() { b.last = 0 }

// spread returns d, or a fifth more or less, so that clients that were started together do
// not ask together.
func spread(d time.Duration) time.Duration { return d*4/5 + rand.N(max(d*2/5, 1)) }

// wait sleeps for the next pause, and reports false if ctx ended first. It then
// makes the client's connections try again at once: gRPC's own backoff goes up
// to two minutes.
func (b *backoff) wait(ctx context.Context, cli *clientv3.Client) bool {
	ok := sleep(ctx, b.next())
	if conn := cli.ActiveConnection(); ok && conn != nil {
		conn.ResetConnectBackoff()
	}
	return ok
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
