package registry

import (
	"context"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// renew is keepAlive for a registration with a fence. Etcd's client does not say to
// which of its requests an answer belongs, so here there is one at a time.
func (r *Registration) renew(ctx context.Context, id clientv3.LeaseID, seen *atomic.Pointer[time.Time], ended chan<- struct{}) {
	var pause backoff
	for {
		sent := time.Now()
		ttl, err := r.renewOnce(ctx, id)
		if err == nil {
			now := time.Now()
			seen.Store(&now)
			r.stands(sent, ttl)
			pause.reset()
			if !sleep(ctx, r.ttl/3-time.Since(sent)) {
				return
			}
			continue
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

// renewOnce renews a lease and returns its TTL. A renewal that takes as long as until the
// next one is due is given up: it may be the connection that fails it.
func (r *Registration) renewOnce(ctx context.Context, id clientv3.LeaseID) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), max(r.ttl/3, 500*time.Millisecond))
	defer cancel() // ends the stream
	stream, err := clientv3.RetryLeaseClient(r.cli).LeaseKeepAlive(ctx)
	if err != nil {
		return 0, err
	}
	if err := stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil {
		return 0, err
	}
	resp, err := stream.Recv()
	switch {
	case err != nil:
		return 0, err
	case resp.GetTTL() <= 0:
		return 0, rpctypes.ErrLeaseNotFound
	}
	return time.Duration(resp.GetTTL()) * time.Second, nil
}

// stands notes that the record stands, and lifts the fence if it has fallen.
func (r *Registration) stands(sent time.Time, ttl time.Duration) {
	r.fence.stands(sent, ttl)
	if r.State() == Fenced {
		r.changeState(func(now State) State {
			switch {
			case now != Fenced || r.fence.Fenced():
				return now
			case r.drains:
				return Draining
			}
			return Registered
		})
	}
}

// watchFence tells when the fence falls, until ctx ends.
func (r *Registration) watchFence(ctx context.Context) {
	for {
		// It is asked under the lock of the state, so that whoever lifts it meanwhile finds
		// the state that is to be changed.
		var fallen bool
		r.changeState(func(now State) State {
			if fallen = r.fence.Fenced(); fallen {
				return Fenced
			}
			return now
		})
		r.mu.Lock()
		news := r.news // that it has fallen early, or is lifted, or nothing of the kind
		r.mu.Unlock()
		var falls <-chan time.Time
		switch left := r.fence.left(); {
		case left > 0:
			falls = time.After(left)
		case !fallen:
			continue // it has fallen since it was asked
		}
		select {
		case <-falls:
		case <-news:
		case <-ctx.Done():
			return
		}
	}
}
