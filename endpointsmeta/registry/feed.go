package registry

import (
	"context"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/grpclog"
)

var logger = grpclog.Component("homing-registry")

const (
	requestTimeout = 2 * time.Second // of one request to etcd
	probeInterval  = 5 * time.Second // see feed.look

	minProbeInterval = 100 * time.Millisecond
	confirmAfter     = 500 * time.Millisecond // see feed.watch
)

// A feed follows the records of one service: it lists, watches, and lists again
// whenever a watch ends or etcd seems to have lost its memory.
type feed struct {
	cli    *clientv3.Client
	prefix string
	probe  time.Duration
	// again asks for a look whether what is known is still true.
	again <-chan struct{}

	records   map[string]Instance
	revisions map[string]int64   // of all records, the bad ones too
	warned    map[string]int64   // the revisions of bad records that were warned of
	header    *pb.ResponseHeader // the newest seen
	listed    bool               // once at least
}

func newFeed(cli *clientv3.Client, service string) *feed {
	return &feed{
		cli:       cli,
		prefix:    service + "/",
		probe:     probeInterval,
		records:   make(map[string]Instance),
		revisions: make(map[string]int64),
		warned:    make(map[string]int64),
	}
}

// run follows the records until ctx ends. It hands on the whole list after each
// change and after a time out of touch, and each failure to ask etcd. The list is
// the receiver's to keep.
func (f *feed) run(ctx context.Context, list func([]Instance), fail func(error)) {
	var pause backoff
	for first := true; ; first = false {
		if !first && !pause.wait(ctx, f.cli) {
			return
		}
		if err := f.list(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			logger.Warningf("listing %q failed, trying again: %v", f.prefix, err)
			fail(f.explain(err))
			continue
		}
		list(f.instances())
		started := time.Now()
		if !f.watch(ctx, list, fail) {
			return
		}
		if time.Since(started) > time.Second {
			pause.reset() // a watch that worked; one that ends at once is paced
		}
	}
}

func (f *feed) explain(err error) error {
	return fmt.Errorf("registry: etcd at %s is out of reach: %v", strings.Join(f.cli.Endpoints(), ", "), err)
}

// list renews the records. The list must be up to date, for one of a member that
// lags would bring back the dead; only who has none at all takes what it can get.
func (f *feed) list(ctx context.Context) error {
	resp, err := f.get(ctx)
	if err != nil && !f.listed && ctx.Err() == nil {
		var stale error
		if resp, stale = f.get(ctx, clientv3.WithSerializable()); stale == nil {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	f.listed = true
	f.header = resp.Header
	clear(f.records)
	clear(f.revisions)
	for _, kv := range resp.Kvs {
		f.put(string(kv.Key), kv.Value, kv.ModRevision)
	}
	return nil
}

func (f *feed) get(ctx context.Context, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return f.cli.Get(ctx, f.prefix, append(opts, clientv3.WithPrefix())...)
}

// put takes in one record. A bad one counts as gone, in old clients and in new
// ones, and is warned of once.
func (f *feed) put(key string, value []byte, revision int64) {
	f.revisions[key] = revision
	i, err := decodeRecord(key, value)
	if err == nil {
		f.records[key] = i
		delete(f.warned, key)
		return
	}
	delete(f.records, key)
	if f.warned[key] != revision {
		f.warned[key] = revision
		logger.Warningf("skipping the record %q: %v", key, err)
	}
}

// watch follows changes until the watch ends, and reports false if ctx did.
//
// It also looks at etcd now and then, for a watch can be deaf without a sign. It is
// not ended for a look, changes would be missed meanwhile; and what differs may be on
// its way, so only what still differs at a second look is.
func (f *feed) watch(ctx context.Context, list func([]Instance), fail func(error)) bool {
	wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	changes := f.cli.Watch(wctx, f.prefix, clientv3.WithPrefix(), clientv3.WithRev(f.header.Revision+1))
	probe := time.NewTicker(f.probe)
	defer probe.Stop()
	confirm := time.NewTimer(0)
	<-confirm.C
	defer confirm.Stop()

	looks := make(chan lookResult, 1)
	var looking, suspected, failed bool
	var looked time.Time
	look := func() {
		if !looking && time.Since(looked) > minProbeInterval {
			looking, looked = true, time.Now()
			go func() { looks <- f.look(wctx) }()
		}
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-f.again:
			look()
		case <-probe.C:
			look()
		case <-confirm.C:
			look()
		case l := <-looks:
			looking = false
			switch {
			case l.err != nil:
				failed = true
				if ctx.Err() == nil {
					fail(f.explain(l.err))
				}
			case l.older(f.header) || suspected && f.differs(l):
				logger.Warningf("etcd has lost its memory, or the watch has missed some: listing %q again", f.prefix)
				return true
			case f.differs(l):
				suspected = true
				confirm.Reset(confirmAfter)
			case failed:
				failed = false
				list(f.instances())
			}
		case resp, ok := <-changes:
			if !ok || resp.Err() != nil {
				if ctx.Err() == nil {
					logger.Infof("the watch of %q ended, listing again: %v", f.prefix, resp.Err())
				}
				return ctx.Err() == nil
			}
			suspected = false
			f.header = resp.Header
			for _, ev := range resp.Events {
				key := string(ev.Kv.Key)
				if ev.Type == clientv3.EventTypeDelete {
					delete(f.records, key)
					delete(f.revisions, key)
					delete(f.warned, key)
				} else {
					f.put(key, ev.Kv.Value, ev.Kv.ModRevision)
				}
			}
			if len(resp.Events) > 0 {
				failed = false
				list(f.instances())
			}
		}
	}
}

// lookResult is what a look at etcd finds: how many records there are, and when the
// newest was written.
type lookResult struct {
	header *pb.ResponseHeader
	count  int
	newest int64
	err    error
}

// look finds an etcd whose data was wiped or replaced: the client resumes its watch
// there by itself, at a revision that may be far away, or past what was written
// since. It gives no sign.
func (f *feed) look(ctx context.Context) lookResult {
	resp, err := f.get(ctx, clientv3.WithKeysOnly(), clientv3.WithLimit(1),
		clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend))
	if err != nil {
		return lookResult{err: err}
	}
	l := lookResult{header: resp.Header, count: int(resp.Count)}
	for _, kv := range resp.Kvs {
		l.newest = kv.ModRevision
	}
	return l
}

// older reports whether the data is not that of seen: a cluster that goes on never
// shows an older revision or term to a linearizable read.
func (l lookResult) older(seen *pb.ResponseHeader) bool {
	return l.header.ClusterId != seen.ClusterId ||
		l.header.Revision < seen.Revision || l.header.RaftTerm < seen.RaftTerm
}

func (f *feed) differs(l lookResult) bool {
	var newest int64
	for _, revision := range f.revisions {
		newest = max(newest, revision)
	}
	return l.count != len(f.revisions) || l.newest != newest
}

func (f *feed) instances() []Instance {
	s := make([]Instance, 0, len(f.records))
	for _, i := range f.records {
		s = append(s, i)
	}
	sortInstances(s)
	return s
}
