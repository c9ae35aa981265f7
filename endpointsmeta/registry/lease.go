package registry

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// lease is one that the record is, or may be, under: a put that failed may have
// arrived, or may yet.
type lease struct {
	id      clientv3.LeaseID
	asked   time.Time // when it was asked for: it ends no earlier than ttl after that
	granted time.Time
	ttl     time.Duration // as etcd has it
}

// grant returns a lease for the next put: a new one, or that of a put that has just
// failed.
func (r *Registration) grant(ctx context.Context) (clientv3.LeaseID, error) {
	if n := len(r.leases); n > 0 && r.revision == 0 && time.Since(r.leases[n-1].granted) < r.ttl/3 {
		return r.leases[n-1].id, nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	asked := time.Now()
	resp, err := r.cli.Grant(ctx, int64(r.ttl/time.Second))
	if err != nil {
		return 0, err
	}
	r.leases = slices.DeleteFunc(r.leases, func(l lease) bool { return time.Since(l.granted) > 3*r.ttl && l.id != r.leases[0].id })
	r.leases = append(r.leases, lease{resp.ID, asked, time.Now(), time.Duration(resp.TTL) * time.Second})
	r.revision = 0
	return resp.ID, nil
}

// settle lets go of all leases but the newest, which the record is under now.
func (r *Registration) settle(ctx context.Context) {
	last := len(r.leases) - 1
	for _, l := range r.leases[:last] {
		rctx, cancel := context.WithTimeout(ctx, requestTimeout)
		_, _ = r.cli.Revoke(rctx, l.id) // or it runs out by itself
		cancel()
	}
	r.leases = r.leases[last:]
}

// revoke lets go of all leases, and the record with them.
func (r *Registration) revoke(ctx context.Context) error {
	if conn := r.cli.ActiveConnection(); conn != nil && len(r.leases) > 0 {
		conn.ResetConnectBackoff()
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var errs []error
	for _, l := range r.leases {
		if _, err := r.cli.Revoke(ctx, l.id); err != nil && !leaseGone(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func leaseGone(err error) bool { return errors.Is(err, rpctypes.ErrLeaseNotFound) }

// keepAlive renews a lease until ctx ends. seen is when etcd last said that it lives, by
// the monotonic clock; ended has a token when etcd's client has given it up, which may be wrong.
func (r *Registration) keepAlive(ctx context.Context, id clientv3.LeaseID, seen *atomic.Pointer[time.Time], ended chan<- struct{}) {
	if r.fence != nil {
		r.renew(ctx, id, seen, ended)
		return
	}
	leases := clientv3.NewLease(r.cli)
	defer leases.Close()
	var pause backoff
	for {
		alive, err := leases.KeepAlive(ctx, id)
		if err == nil {
			for range alive {
				now := time.Now()
				seen.Store(&now)
				pause.reset()
			}
		}
		if ctx.Err() != nil {
			return
		}
		select {
		case ended <- struct{}{}:
		default:
		}
		if !pause.wait(ctx, r.cli) {
			return
		}
	}
}
