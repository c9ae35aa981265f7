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
	guard clientv3.Cmp
}

func (kv guardedKV) Txn(ctx context.Context) clientv3.Txn {
	return &guardedTxn{kv.KV.Txn(ctx).If(kv.guard)}
}

type guardedTxn struct{ clientv3.Txn }

func (t *guardedTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	t.Txn = t.Txn.Then(ops...)
	return t
}

func (t *guardedTxn) Commit() (*clientv3.TxnResponse, error) {
	resp, err := t.Txn.Commit()
	if err == nil && !resp.Succeeded {
		err = errGuard
	}
	return resp, err
}

// write puts the record under lease, if guard holds.
func (r *Registration) write(ctx context.Context, guard clientv3.Cmp, lease clientv3.LeaseID) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	cli := clientv3.NewCtxClient(ctx)
	cli.KV = guardedKV{r.cli.KV, guard}
	manager, err := endpoints.NewManager(cli, r.service)
	if err != nil {
		return err
	}
	return manager.AddEndpoint(ctx, r.key, endpoints.Endpoint{Addr: r.addr, Metadata: r.Meta()}, clientv3.WithLease(lease))
}

// holder returns the record in our place, nil if there is none.
func (r *Registration) holder(ctx context.Context) (*mvccpb.KeyValue, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := r.cli.Get(ctx, r.key)
	if err != nil || len(resp.Kvs) == 0 {
		return nil, err
	}
	return resp.Kvs[0], nil
}

// claim puts the record where there is none, or one that is ours to replace: of
// the same address, so of a former self, and not of a successor; or one that nobody
// can use. What a server that starts finds in its place is of a former self, if it
// is of the same address, and with WithTakeover wherever it is.
func (r *Registration) claim(ctx context.Context, first bool) error {
	old, err := r.holder(ctx)
	if err != nil {
		return err
	}
	guard := clientv3.Compare(clientv3.CreateRevision(r.key), "=", 0)
	var before int64
	if old != nil {
		i, bad := decodeRecord(r.key, old.Value)
		before = i.Meta.Incarnation
		other := i.Addr != r.addr && !(first && r.takeover)
		successor := !first && before > r.Meta().Incarnation
		if bad == nil && (other || successor) {
			return fmt.Errorf("%w: %q is at %s", ErrIDTaken, r.id, i.Addr)
		}
		guard = clientv3.Compare(clientv3.ModRevision(r.key), "=", old.ModRevision)
	}
	lease, revision, err := r.grant(ctx)
	if err != nil {
		return err
	}
	r.lease = lease // so that Close revokes it, however the write ends
	if first {
		// Whatever was registered before wrote, so the revision was smaller; unless
		// etcd has lost its data since.
		r.mu.Lock()
		r.meta.Incarnation = max(revision, before+1)
		r.mu.Unlock()
	}
	return r.write(ctx, guard, lease)
}

func (r *Registration) grant(ctx context.Context) (clientv3.LeaseID, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := r.cli.Grant(ctx, int64(r.ttl/time.Second))
	if err != nil {
		return 0, 0, err
	}
	return resp.ID, resp.Revision, nil
}

// firstClaim is claim for a server that starts. The record in its place may be of
// a predecessor that died on another address and whose lease has not run out yet:
// it waits for that, unless the lease is renewed, for then the holder lives.
func (r *Registration) firstClaim(ctx context.Context) error {
	var pause backoff
	var seen leaseSeen
	for {
		err := r.claim(ctx, true)
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
	left time.Duration
	at   time.Time
}

// renewed reports whether the lease of the record in our place has been renewed
// since it was first seen, or never ends.
func (r *Registration) renewed(ctx context.Context, seen *leaseSeen) (bool, error) {
	kv, err := r.holder(ctx)
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
	if seen.id != resp.ID {
		*seen = leaseSeen{resp.ID, left, time.Now()}
		return false, nil
	}
	most := seen.left + time.Second - time.Since(seen.at) // if nobody renewed it
	return left > 0 && left > most, nil
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
