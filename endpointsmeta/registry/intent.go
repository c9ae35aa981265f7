package registry

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/internal/records"
)

// errMayNot says that the server's user may not read what its operator says.
var errMayNot = errors.New("the etcd user may not read it")

// maxLookPause bounds how long a deaf watch goes unnoticed, whatever the TTL.
const maxLookPause = 30 * time.Second

// lookPause is how long it takes until the next look, also for somebody who may not read:
// the right can come, and come back.
func (r *Registration) lookPause() time.Duration {
	return min(max(5*r.ttl/3, time.Second), maxLookPause)
}

// watchIntent follows what the operator says of the server, until ctx ends: by a watch,
// beside that of the record, and by a look now and then, for a watch can be deaf.
func (r *Registration) watchIntent(ctx context.Context) {
	var pause backoff
	seen, err := r.intentAt, error(nil) // Register has just looked
	for {
		if seen == nil {
			seen, err = r.lookForIntent(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errMayNot):
			select {
			case <-ctx.Done():
				return
			case <-r.back:
			case <-time.After(r.lookPause()):
			}
			continue
		case err == nil:
			started := time.Now()
			r.followIntent(ctx, seen)
			seen = nil
			if time.Since(started) > time.Second {
				pause.reset() // a watch that worked
			}
		}
		if !pause.wait(ctx, r.cli) {
			return
		}
	}
}

// followIntent returns when the watch has ended, or is suspect.
func (r *Registration) followIntent(ctx context.Context, seen *pb.ResponseHeader) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := r.watches.watch(ctx, r.cli, r.intentKey(), clientv3.WithRev(seen.Revision+1))
	look := time.NewTicker(r.lookPause())
	defer look.Stop()
	for {
		told := false
		select {
		case <-ctx.Done():
			return
		case <-r.back:
			return // what took the record away may have made the watch deaf
		case <-look.C:
		case resp, ok := <-changes:
			if !ok || resp.Err() != nil {
				return
			}
			if told = len(resp.Events) > 0; !told {
				continue
			}
		}
		before := r.intentSeen
		now, err := r.lookForIntent(ctx)
		if err != nil || olderThan(now, seen) || !told && r.intentSeen != before {
			return
		}
		seen = now
	}
}

func (r *Registration) intentKey() string { return records.IntentKey(r.service, r.id) }

// lookForIntent reads what the operator says. Register calls it before the first put, and
// watchIntent after that.
func (r *Registration) lookForIntent(ctx context.Context) (*pb.ResponseHeader, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := r.cli.Get(ctx, r.intentKey())
	if errors.Is(err, rpctypes.ErrPermissionDenied) || status.Code(err) == codes.PermissionDenied { // of a proxy before etcd
		if !r.warned {
			r.warned = true
			logger.Warningf("the server's etcd user may not read %q: what its operator says from now on is not heeded, and what was heeded stays", r.intentKey())
		}
		return nil, errMayNot
	}
	if err != nil {
		return nil, err
	}
	if r.warned {
		r.warned = false
		logger.Infof("the server's etcd user may read %q: what its operator says is heeded", r.intentKey())
	}
	var intent records.Intent
	var revision int64
	if len(resp.Kvs) > 0 {
		revision = resp.Kvs[0].ModRevision
		if intent, err = records.DecodeIntent(resp.Kvs[0].Value); err != nil && revision != r.intentSeen {
			logger.Warningf("the operator's word %q counts as none: %v", r.intentKey(), err)
		}
	}
	// A wiped etcd counts from 1 again, so another word may have the same revision.
	if revision != r.intentSeen || intent.Draining != r.intent.Draining || intent.Weight != r.intent.Weight {
		r.intentSeen = revision
		r.heed(intent, revision)
	}
	return resp.Header, nil
}

// heed has the record say what the operator wants.
func (r *Registration) heed(intent records.Intent, revision int64) {
	r.mu.Lock()
	r.intent, r.heeded = intent, revision
	r.version++
	r.mu.Unlock()
	signal(r.change)
}

// signal leaves a token, unless there is one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
