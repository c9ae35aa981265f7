package registry

import (
	"context"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// renew is keepAlive for a registration with a fence. Etcd's client does not say to
// which of its requests an answer belongs, so here there is one at a time.
func (r *Registration) renew(ctx context.Context, id clientv3.LeaseID, seen *atomic.Pointer[time.Time], ended chan<- struct{}) {
	var pause backoff
	var stream *renewals
	defer func() { stream.close() }()
	for {
		var sent time.Time
		var ttl time.Duration
		var err error
		if stream == nil {
			stream, err = r.openRenewals(ctx)
		}
		if err == nil {
			sent = time.Now()
			ttl, err = stream.renew(id, r.renewTimeout())
		}
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
		stream.close()
		stream = nil
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

// renewTimeout bounds a renewal. One that takes as long as until the next one is due is
// given up: it may be the connection that fails it.
func (r *Registration) renewTimeout() time.Duration { return max(r.ttl/3, 500*time.Millisecond) }

// renewals is a stream to etcd. Each that is opened shows etcd a user's password, so one
// serves as long as it can.
type renewals struct {
	pb.Lease_LeaseKeepAliveClient
	cancel context.CancelFunc
}

// openRenewals opens a stream that ends with ctx.
func (r *Registration) openRenewals(ctx context.Context) (*renewals, error) {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	timer := time.AfterFunc(r.renewTimeout(), cancel)
	defer timer.Stop()
	stream, err := clientv3.RetryLeaseClient(r.cli).LeaseKeepAlive(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	return &renewals{stream, cancel}, nil
}

// renew renews a lease and returns its TTL. After an error the stream is of no more use.
func (s *renewals) renew(id clientv3.LeaseID, timeout time.Duration) (time.Duration, error) {
	timer := time.AfterFunc(timeout, s.cancel)
	defer timer.Stop()
	if err := s.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil {
		return 0, err
	}
	resp, err := s.Recv()
	switch {
	case err != nil:
		return 0, err
	case resp.GetTTL() <= 0:
		return 0, rpctypes.ErrLeaseNotFound
	}
	return time.Duration(resp.GetTTL()) * time.Second, nil
}

func (s *renewals) close() {
	if s != nil {
		s.cancel()
	}
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
