package registry

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// errAway says that etcd does not tell what has become of the record.
var errAway = errors.New("etcd does not answer")

// run owns the record until ctx ends: nobody else puts it, so nothing comes back
// after Close.
func (r *Registration) run(ctx context.Context) {
	defer close(r.done)
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() { r.watchIntent(ctx) })
	if r.fence != nil {
		watching.Go(func() { r.watchFence(ctx) })
	}
	for {
		why := r.hold(ctx)
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(why, errAway) {
			r.fence.gone(r.there, r.ttl)
		}
		logger.Warningf("the registration %q is lost, putting it back: %v", r.key, why)
		r.setState(Lost)
		var pause backoff
		var said string
		for {
			err := r.claim(ctx, false)
			if err == nil {
				break
			}
			if ctx.Err() == nil && err.Error() != said {
				said = err.Error()
				logger.Warningf("putting the registration %q back failed, trying again: %v", r.key, err)
			}
			if !pause.wait(ctx, r.cli) {
				return
			}
		}
		signal(r.back)
	}
}

// hold keeps the lease alive and the record up to date. It returns why it could
// not, when the record is lost or ctx ends.
//
// The lease's own signs are not enough: its channel can close while the lease
// lives, and a key can go while its lease stays. So the record itself is watched,
// and read each time that the lease is due.
func (r *Registration) hold(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	last := r.leases[len(r.leases)-1]
	held := last.id
	r.there = last.asked
	var seen atomic.Pointer[time.Time]
	began := time.Now()
	seen.Store(&began)
	ended := make(chan struct{}, 1)
	renewing := make(chan struct{})
	go func() {
		defer close(renewing)
		r.keepAlive(ctx, held, &seen, ended)
	}()
	defer func() { cancel(); <-renewing }()

	check := time.NewTicker(max(r.ttl/3, 300*time.Millisecond))
	defer check.Stop()
	from := r.revision + 1
	changes := r.watches.watch(ctx, r.cli, r.key, clientv3.WithRev(from))
	var again <-chan time.Time // when to watch again
	var pause backoff
	unsure := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
		case <-check.C:
		case <-again:
			again = nil
			changes = r.watches.watch(ctx, r.cli, r.key, clientv3.WithRev(from))
			continue
		case resp, ok := <-changes:
			if !ok || resp.Err() != nil {
				changes, again = nil, time.After(pause.next())
			}
		case <-r.change:
			if r.upToDate() { // it was in the put that has brought the record (back)
				continue
			}
			guard := clientv3.Compare(clientv3.LeaseValue(r.key), "=", held)
			err := r.write(ctx, guard, held)
			unsure = err != nil // it may have been written
			switch {
			case err == nil:
			case errors.Is(err, errGuard), leaseGone(err):
				return err
			default:
				if !pause.wait(ctx, r.cli) {
					return ctx.Err()
				}
				signal(r.change)
			}
			continue
		}
		asked := time.Now()
		kv, at, err := r.holder(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil && time.Since(*seen.Load()) > r.ttl:
			return fmt.Errorf("%w: %w", errAway, err) // it cannot be there any more, as far as anyone here knows
		case err != nil:
			if conn := r.cli.ActiveConnection(); conn != nil {
				conn.ResetConnectBackoff()
			}
			continue
		case kv == nil:
			return errors.New("the key is gone")
		case clientv3.LeaseID(kv.Lease) != held, kv.ModRevision != r.revision && !unsure:
			return errors.New("the key was overwritten")
		}
		r.there = asked
		pause.reset()
		from = max(from, at+1)
	}
}
