package registry

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// run owns the record until ctx ends: nobody else puts it, so nothing comes back
// after Close.
func (r *Registration) run(ctx context.Context) {
	defer close(r.done)
	for {
		why := r.hold(ctx)
		if ctx.Err() != nil {
			return
		}
		logger.Warningf("the registration %q is lost, putting it back: %v", r.key, why)
		r.setState(Lost)
		var pause backoff
		var said string
		for {
			// What is left of the old lease must not take the new record with it.
			version := r.newest()
			err := r.claim(ctx, false)
			if err == nil {
				r.wrote(version)
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
	}
}

func (r *Registration) newest() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.version
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
	leases := clientv3.NewLease(r.cli)
	defer leases.Close()
	changes := r.cli.Watch(clientv3.WithRequireLeader(ctx), r.key)
	check := time.NewTicker(max(r.ttl/3, 300*time.Millisecond))
	defer check.Stop()

	alive, err := leases.KeepAlive(ctx, r.lease)
	if err != nil {
		return err
	}
	seen := time.Now()
	var pause backoff
	for {
		look := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case resp, ok := <-alive:
			if ok {
				seen = time.Now()
				_ = resp
				continue
			}
			// It ends without saying why. Look, and ask again.
			if !pause.wait(ctx, r.cli) {
				return ctx.Err()
			}
			if alive, err = leases.KeepAlive(ctx, r.lease); err != nil {
				return err
			}
			look = true
		case resp, ok := <-changes:
			if !ok || resp.Err() != nil {
				if !pause.wait(ctx, r.cli) {
					return ctx.Err()
				}
				changes = r.cli.Watch(clientv3.WithRequireLeader(ctx), r.key)
			}
			look = true
		case <-check.C:
			look = true
		case <-r.change:
			version := r.newest()
			guard := clientv3.Compare(clientv3.LeaseValue(r.key), "=", r.lease)
			switch err := r.write(ctx, guard, r.lease); {
			case err == nil:
				r.wrote(version)
			case errors.Is(err, errGuard), leaseGone(err):
				return err
			default:
				if !pause.wait(ctx, r.cli) {
					return ctx.Err()
				}
				select {
				case r.change <- struct{}{}:
				default:
				}
			}
			continue
		}
		if !look {
			continue
		}
		kv, err := r.holder(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil && time.Since(seen) > r.ttl:
			return err // it cannot be there any more, as far as anyone here knows
		case err != nil:
			if conn := r.cli.ActiveConnection(); conn != nil {
				conn.ResetConnectBackoff()
			}
		case kv == nil:
			return errors.New("the key is gone")
		case clientv3.LeaseID(kv.Lease) != r.lease:
			return errors.New("the key was overwritten")
		default:
			pause.reset()
		}
	}
}

func leaseGone(err error) bool { return errors.Is(err, rpctypes.ErrLeaseNotFound) }
