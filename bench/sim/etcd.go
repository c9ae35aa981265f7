package sim

import (
	"context"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// frame is what gRPC and HTTP/2 put before each message.
const frame = 5 + 9

// etcd is the memory of an etcd, and the watches on it.
type etcd struct {
	clientv3.KV // of which servers use Txn

	mu       sync.Mutex
	down     bool
	revision int64
	records  map[string]*mvccpb.KeyValue
	log      []*clientv3.Event
	watches  map[*watch]struct{}
}

func newEtcd() *etcd {
	return &etcd{revision: 1, records: make(map[string]*mvccpb.KeyValue), watches: make(map[*watch]struct{})}
}

func (e *etcd) headerLocked() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: 0xcdf818194e3a8c32, MemberId: 0x8e9e05c52164694d, Revision: e.revision, RaftTerm: 2}
}

// Txn takes puts from the official manager, so that records are as it writes them. Each
// is a change of its own, as those of servers that register one by one are.
func (e *etcd) Txn(context.Context) clientv3.Txn { return &txn{etcd: e} }

type txn struct {
	clientv3.Txn
	etcd *etcd
	ops  []clientv3.Op
}

func (t *txn) Then(ops ...clientv3.Op) clientv3.Txn { t.ops = ops; return t }

func (t *txn) Commit() (*clientv3.TxnResponse, error) {
	e := t.etcd
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, op := range t.ops {
		e.revision++
		key := string(op.KeyBytes())
		kv := &mvccpb.KeyValue{Key: op.KeyBytes(), CreateRevision: e.revision, ModRevision: e.revision, Version: 1,
			Value: op.ValueBytes(), Lease: 0x694d81a3f5c1b20a + e.revision}
		if old := e.records[key]; old != nil {
			kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
		}
		e.records[key] = kv
		e.log = append(e.log, &clientv3.Event{Type: clientv3.EventTypePut, Kv: kv})
	}
	e.wakeLocked()
	return &clientv3.TxnResponse{Succeeded: true}, nil
}

// expire takes records away, as the end of their leases does.
func (e *etcd) expire(keys []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, key := range keys {
		e.revision++
		delete(e.records, key)
		e.log = append(e.log, &clientv3.Event{Type: clientv3.EventTypeDelete,
			Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: e.revision}})
	}
	e.wakeLocked()
}

// stop makes it answer nobody.
func (e *etcd) stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.down = true
	e.wakeLocked()
}

// startEmpty brings it back with the records gone: their leases ended meanwhile.
func (e *etcd) startEmpty() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.down = false
	e.revision += int64(len(e.records))
	clear(e.records)
	e.log = nil
}

func (e *etcd) wakeLocked() {
	for w := range e.watches {
		select {
		case w.news <- struct{}{}:
		default:
		}
	}
}

// traffic is what one client costs etcd.
type traffic struct {
	events, watchBytes int // of watches
	lists, listBytes   int // all records read
	looks, lookBytes   int // revisions, keys, and counts of them
}

func (t traffic) since(o traffic) traffic {
	return traffic{t.events - o.events, t.watchBytes - o.watchBytes, t.lists - o.lists, t.listBytes - o.listBytes,
		t.looks - o.looks, t.lookBytes - o.lookBytes}
}

// connection is one client's to etcd.
type connection struct {
	clientv3.KV
	etcd    *etcd
	traffic // guarded by etcd.mu
}

func (c *connection) soFar() traffic {
	c.etcd.mu.Lock()
	defer c.etcd.mu.Unlock()
	return c.traffic
}

// Get implements [clientv3.KV]. An etcd that is away lets it wait.
func (c *connection) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	op := clientv3.OpGet(key, opts...)
	e := c.etcd
	e.mu.Lock()
	if e.down {
		e.mu.Unlock()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	defer e.mu.Unlock()
	resp := &pb.RangeResponse{Header: e.headerLocked()}
	if op.RangeBytes() != nil { // else it is for the revision: no record has that key
		resp.Count = int64(len(e.records))
	}
	if !op.IsCountOnly() {
		for _, kv := range e.records {
			if kv.ModRevision < op.MinModRev() {
				continue
			}
			if op.IsKeysOnly() {
				kv = &mvccpb.KeyValue{Key: kv.Key, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision,
					Version: kv.Version, Lease: kv.Lease}
			}
			resp.Kvs = append(resp.Kvs, kv)
		}
	}
	if size := proto.Size(resp) + frame; op.IsCountOnly() || op.IsKeysOnly() {
		c.looks, c.lookBytes = c.looks+1, c.lookBytes+size
	} else {
		c.lists, c.listBytes = c.lists+1, c.listBytes+size
	}
	return (*clientv3.GetResponse)(resp), nil
}

// watch is one that stands.
type watch struct {
	news chan struct{}
	from int64 // the next revision that it waits for
}

// Watch implements [clientv3.Watcher]. It ends when etcd stops.
func (c *connection) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	w := &watch{news: make(chan struct{}, 1), from: clientv3.OpGet(key, opts...).Rev()}
	w.news <- struct{}{}
	e := c.etcd
	e.mu.Lock()
	e.watches[w] = struct{}{}
	e.mu.Unlock()
	out := make(chan clientv3.WatchResponse)
	go func() {
		defer close(out)
		defer func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			delete(e.watches, w)
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case <-w.news:
			}
			resp, ok := c.next(w)
			if !ok {
				return
			}
			if len(resp.Events) == 0 {
				continue
			}
			select {
			case <-ctx.Done():
				return
			case out <- resp:
			}
		}
	}()
	return out
}

// next takes what the watch has not been told yet.
func (c *connection) next(w *watch) (clientv3.WatchResponse, bool) {
	e := c.etcd
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.down {
		return clientv3.WatchResponse{}, false
	}
	at, _ := slices.BinarySearchFunc(e.log, w.from, func(ev *clientv3.Event, rev int64) int {
		return int(ev.Kv.ModRevision - rev)
	})
	events := e.log[at:]
	w.from = e.revision + 1
	if len(events) == 0 {
		return clientv3.WatchResponse{}, true
	}
	msg := &pb.WatchResponse{Header: e.headerLocked(), Events: slices.Clone(events)}
	c.events += len(events)
	c.watchBytes += proto.Size(msg) + frame
	return clientv3.WatchResponse{Header: msg.Header, Events: msg.Events}, true
}

func (*connection) RequestProgress(context.Context) error { return nil }

func (*connection) Close() error { return nil }
