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
	probeInterval  = 5 * time.Second // see feed.suspicious

	minProbeInterval = 100 * time.Millisecond
)

// A feed follows the records of one service: it lists, watches, and lists again
// whenever a watch ends or etcd seems to have lost its memory.
type feed struct {
	cli    *clientv3.Client
	prefix string
	probe  time.Duration
	// again asks for a look whether what is known is still true.
	again <-chan struct{}

	records map[string]Instance
	warned  map[string]int64   // the revisions of bad records that were warned of
	header  *pb.ResponseHeader // the newest seen
	listed  bool               // once at least
}

func newFeed(cli *clientv3.Client, service string) *feed {
	return &feed{
		cli:     cli,
		prefix:  service + "/",
		probe:   probeInterval,
		records: make(map[string]Instance),
		warned:  make(map[string]int64),
	}
}

// run follows the records until ctx ends. It hands on the whole list after each
// change, and each failure to list. The list is the receiver's to keep.
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
		if !f.watch(ctx, list) {
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
func (f *feed) watch(ctx context.Context, list func([]Instance)) bool {
	wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	changes := f.cli.Watch(wctx, f.prefix, clientv3.WithPrefix(), clientv3.WithRev(f.header.Revision+1))
	probe := time.NewTicker(f.probe)
	defer probe.Stop()
	suspicions := make(chan bool, 1)
	probing := false
	var looked time.Time
	look := func() {
		// A watch that works is not ended for it: changes would be missed.
		if !probing && time.Since(looked) > minProbeInterval {
			probing, looked = true, time.Now()
			go f.suspicious(wctx, f.header, suspicions)
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
		case lost := <-suspicions:
			if probing = false; lost {
				logger.Warningf("etcd has lost its memory: listing %q again", f.prefix)
				return true
			}
		case resp, ok := <-changes:
			if !ok || resp.Err() != nil {
				if ctx.Err() == nil {
					logger.Infof("the watch of %q ended, listing again: %v", f.prefix, resp.Err())
				}
				return ctx.Err() == nil
			}
			f.header = resp.Header
			for _, ev := range resp.Events {
				key := string(ev.Kv.Key)
				if ev.Type == clientv3.EventTypeDelete {
					delete(f.records, key)
					delete(f.warned, key)
				} else {
					f.put(key, ev.Kv.Value, ev.Kv.ModRevision)
				}
			}
			if len(resp.Events) > 0 {
				list(f.instances())
			}
		}
	}
}

// suspicious finds an etcd whose data was wiped or replaced by older data: a watch
// gives no sign of it, it waits for a revision that may be far away. A cluster
// that goes on never shows an older revision or term to a linearizable read.
func (f *feed) suspicious(ctx context.Context, seen *pb.ResponseHeader, verdict chan<- bool) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := f.cli.Get(ctx, f.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	verdict <- err == nil && (resp.Header.ClusterId != seen.ClusterId ||
		resp.Header.Revision < seen.Revision || resp.Header.RaftTerm < seen.RaftTerm)
}

func (f *feed) instances() []Instance {
	s := make([]Instance, 0, len(f.records))
	for _, i := range f.records {
		s = append(s, i)
	}
	sortInstances(s)
	return s
}
