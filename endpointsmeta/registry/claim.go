package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"

	"github.com/homing-grpc/homing/internal/records"
)

// ErrIDTaken says that a living server holds the id. Errors that wrap it name
// the id and that server's address.
var ErrIDTaken = errors.New("registry: id is taken by a living server")

// errGuard says that a record was not what a guarded write expected.
var errGuard = errors.New("registry: the record has changed")

// guardedKV makes every transaction depend on a condition. The official manager
// writes through it without knowing.
type guardedKV struct {
	clientv3.KV
	guard    clientv3.Cmp
	revision *int64 // of the write, when it has succeeded
}

func (kv guardedKV) Txn(ctx context.Context) clientv3.Txn {
	return &guardedTxn{kv.KV.Txn(ctx).If(kv.guard), kv.revision}
}

type guardedTxn struct {
	clientv3.Txn
	revision *int64
}

func (t *guardedTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	t.Txn = t.Txn.Then(ops...)
	return t
}

func (t *guardedTxn) Commit() (*clientv3.TxnResponse, error) {
	resp, err := t.Txn.Commit()
	switch {
	case err != nil:
	case !resp.Succeeded:
		err = errGuard
	default:
		*t.revision = resp.Header.Revision
	}
	return resp, err
}

// write puts the record as it is now under lease, if guard holds.
func (r *Registration) write(ctx context.Context, guard clientv3.Cmp, lease clientv3.LeaseID) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	cli := clientv3.NewCtxClient(ctx)
	cli.KV = guardedKV{r.cli.KV, guard, &r.revision}
	manager, err := endpoints.NewManager(cli, r.service)
	if err != nil {
		return err
	}
	m, version := r.newest()
	if err := manager.AddEndpoint(ctx, r.key, endpoints.Endpoint{Addr: r.addr, Metadata: m}, clientv3.WithLease(lease)); err != nil {
		return err
	}
	// Before anybody is told that it is registered.
	held := r.leases[len(r.leases)-1]
	r.fence.stands(held.asked, held.ttl)
	if r.told != nil { // or Register is not done yet
		r.wrote(version, m.Draining)
	}
	return nil
}

func (r *Registration) newest() (records.Metadata, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return records.Metadata{
		Meta:    r.intent.Apply(r.meta), // Update replaces labels, and never changes them
		Started: r.began,
		Intent:  r.heeded,
	}, r.version
}

// upToDate reports whether the newest version is in etcd.
func (r *Registration) upToDate() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.written >= r.version
}

// holder returns the record in our place, nil if there is none, and etcd's revision.
func (r *Registration) holder(ctx context.Context) (*mvccpb.KeyValue, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := r.cli.Get(ctx, r.key)
	switch {
	case err != nil:
		return nil, 0, err
	case len(resp.Kvs) == 0:
		return nil, resp.Header.Revision, nil
	}
	return resp.Kvs[0], resp.Header.Revision, nil
}

// claim puts the record where there is none, or one that is ours to replace.
//
// For a server that starts, that is one of its own address, so of a former self; one
// that nobody can use; and with WithTakeover any. For one that was there before it is
// any but that of a later start: whoever registered after it had the right to.
func (r *Registration) claim(ctx context.Context, first bool) error {
	old, now, err := r.holder(ctx)
	if err != nil {
		return err
	}
	guard := clientv3.Compare(clientv3.CreateRevision(r.key), "=", 0)
	var before int64
	if old != nil {
		i, bad := decodeRecord(r.key, old.Value, true)
		before = i.Meta.Incarnation
		theirs := before > r.Meta().Incarnation
		if first {
			theirs = i.Addr != r.addr && !r.takeover
		}
		if bad == nil && theirs {
			return fmt.Errorf("%w: %q is at %s", ErrIDTaken, r.id, i.Addr)
		}
		guard = clientv3.Compare(clientv3.ModRevision(r.key), "=", old.ModRevision)
	}
	if first {
		// So that it is not seen without, not even for a moment.
		if r.intentAt, err = r.lookForIntent(ctx); err != nil && !errors.Is(err, errMayNot) {
			return err
		}
	}
	lease, err := r.grant(ctx)
	if err != nil {
		return err
	}
	if first {
		// Whoever was registered before had a revision from before its own put; unless
		// etcd has lost its data since.
		r.mu.Lock()
		r.meta.Incarnation = incarnation(now, before)
		r.mu.Unlock()
	}
	if err := r.write(ctx, guard, lease); err != nil {
		if leaseGone(err) {
			r.leases = r.leases[:len(r.leases)-1]
		}
		return err
	}
	r.settle(ctx)
	return nil
}

// incarnation returns that of a server which starts when etcd is at a revision, after one
// that is before, 0 if it has left no record. A wiped etcd counts its revisions from 1
// again, so below the revision there are some bits of time: who starts where another
// start was is another one all the same.
func incarnation(revision, before int64) int64 {
	tick := time.Now().UnixMilli() / 32 % (1 << 12) // comes again after 131 s
	return max(revision<<12|tick, before+1)
}

// firstClaim is claim for a server that starts. The record in its place may be of
// a predecessor that died on another address and whose lease has not run out yet:
// it waits for that, unless the lease is renewed, for then the holder lives.
func (r *Registration) firstClaim(ctx context.Context) error {
	var pause backoff
	var seen leaseSeen
	var said string
	for {
		err := r.claim(ctx, true)
		if err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			logger.Infof("registering %q takes longer: %v", r.key, err)
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("registry: register %q: %w (last error: %v)", r.key, ctx.Err(), err)
		case errors.Is(err, ErrIDTaken):
			alive, lerr := r.renewed(ctx, &seen)
			if lerr == nil && alive {
				return err
			}
		case !temporary(err):
			return fmt.Errorf("registry: register %q: %w", r.key, err)
		}
		if !pause.wait(ctx, r.cli) {
			return fmt.Errorf("registry: register %q: %w (last error: %v)", r.key, ctx.Err(), err)
		}
	}
}

// leaseSeen is a lease as it was when it was first looked at.
type leaseSeen struct {
	id   clientv3.LeaseID
	term uint64
	left time.Duration
	at   time.Time

	renewals int
}

// renewed reports whether the lease of the record in our place has been renewed twice
// since it was first seen, or never ends.
func (r *Registration) renewed(ctx context.Context, seen *leaseSeen) (bool, error) {
	kv, _, err := r.holder(ctx)
	if err != nil || kv == nil {
		return false, err
	}
	if kv.Lease == 0 {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := r.cli.TimeToLive(ctx, clientv3.LeaseID(kv.Lease))
	if err != nil {
		return false, err
	}
	left := time.Duration(resp.TTL) * time.Second // rounded down by etcd
	if seen.id != resp.ID || seen.term != resp.RaftTerm {
		*seen = leaseSeen{id: resp.ID, term: resp.RaftTerm, left: left, at: time.Now()}
		return false, nil
	}
	most := seen.left + time.Second - time.Since(seen.at) // if nobody renewed it
	if left > 0 && left > most {
		seen.left, seen.at = left, time.Now()
		seen.renewals++
	}
	// A leader that comes into office lengthens leases, too, once.
	return seen.renewals >= 2, nil
}

// temporary reports whether trying again can help.
func temporary(err error) bool {
	if errors.Is(err, errGuard) {
		return true
	}
	var e rpctypes.EtcdError
	if !errors.As(err, &e) {
		return true
	}
	switch e {
	case rpctypes.ErrPermissionDenied, rpctypes.ErrAuthFailed, rpctypes.ErrUserEmpty, rpctypes.ErrRequestTooLarge:
		return false
	}
	return true
}
