package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/grpclog"

	"github.com/homing-grpc/homing/internal/records"
)

var logger = grpclog.Component("homing-registry")

const (
	requestTimeout = 2 * time.Second // of one request to etcd
	probeInterval  = 5 * time.Second // see feed.watch

	burst = 1000 // responses of a watch that may be one change
)

// A feed follows the records of one service: it lists, watches, and lists again
// whenever a watch ends or etcd seems to have lost its memory.
type feed struct {
	cli    *clientv3.Client
	prefix string
	probe  time.Duration
	plain  bool // a bare address is a record, too
	// again asks for a look whether what is known is still true.
	again <-chan struct{}

	confirmed func()           // is called when what is known was seen to be true
	resynced  func(why string) // when all was listed anew

	watches  watcher
	records  map[string]Instance
	sorted   []Instance          // the last list, which nobody changes
	changed  map[string]struct{} // keys whose records are not as they were in it
	versions map[string]version  // of all keys, those of no use too
	warned   map[string]version  // of bad records that were warned of
	header   *pb.ResponseHeader  // the newest seen
	agreed   *pb.ResponseHeader  // of the newest read that had all that is known, and no more
	listed   bool                // there is a list, here or with whoever asked
}

// version is what tells one put of a key from all others. In an etcd that was wiped the same
// key may have the same revision again, if all servers have started again, too: but not the
// same lease.
type version struct{ revision, lease int64 }

func versionOf(kv *mvccpb.KeyValue) version { return version{kv.ModRevision, kv.Lease} }

func newFeed(cli *clientv3.Client, service string) *feed {
	return &feed{
		cli:       cli,
		prefix:    service + "/",
		probe:     probeInterval,
		confirmed: func() {},
		resynced:  func(string) {},
		records:   make(map[string]Instance),
		changed:   make(map[string]struct{}),
		versions:  make(map[string]version),
		warned:    make(map[string]version),
	}
}

// run follows the records until ctx ends. It hands on the whole list after each
// change and after a time out of touch, and each failure to ask etcd.
func (f *feed) run(ctx context.Context, list func([]Instance), fail func(error)) {
	back := f.reconnects(ctx)
	var pause backoff
	ended := "" // why the last watch did
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
		if ended != "" {
			f.resynced(ended)
		}
		list(f.instances())
		started := time.Now()
		if ended = f.watch(ctx, back, list, fail); ended == "" {
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

// reconnects returns a channel that has a token when the connection to etcd was lost and
// is back. What is there then may be another etcd.
func (f *feed) reconnects(ctx context.Context) <-chan struct{} {
	back := make(chan struct{}, 1)
	conn := f.cli.ActiveConnection()
	if conn == nil {
		return back
	}
	go func() {
		for state := conn.GetState(); conn.WaitForStateChange(ctx, state); {
			if state = conn.GetState(); state == connectivity.Ready {
				select {
				case back <- struct{}{}:
				default:
				}
			}
		}
	}()
	return back
}

// list renews the records. The list must be up to date, for one of a member that
// lags would bring back the dead; only who has none at all takes what it can get.
func (f *feed) list(ctx context.Context) error {
	resp, err := f.get(ctx)
	sure := err == nil
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
	f.header, f.agreed = resp.Header, nil
	if sure {
		f.agreed = resp.Header
	}
	clear(f.records)
	clear(f.changed)
	clear(f.versions)
	f.sorted = nil
	for _, kv := range resp.Kvs {
		f.put(string(kv.Key), kv.Value, versionOf(kv))
	}
	if sure {
		f.confirmed()
	}
	return nil
}

// get reads the records, or of them what opts say.
func (f *feed) get(ctx context.Context, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	return f.read(ctx, append(opts, clientv3.WithPrefix())...)
}

// read reads the key of no record, or what opts say.
func (f *feed) read(ctx context.Context, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return f.cli.Get(ctx, f.prefix, opts...)
}

// put takes in one record. A bad one counts as gone, in old clients and in new
// ones, and is warned of once. What lies deeper is another service's.
func (f *feed) put(key string, value []byte, v version) {
	f.versions[key] = v
	if strings.Contains(key[len(f.prefix):], "/") {
		return
	}
	i, err := decodeRecord(key, value, f.plain)
	if err == nil && !utf8.ValidString(key) {
		err = errors.New("registry: key must be UTF-8")
	}
	f.changed[key] = struct{}{}
	if err == nil {
		f.records[key] = i
		delete(f.warned, key)
		return
	}
	delete(f.records, key)
	if f.warned[key] != v {
		f.warned[key] = v
		logger.Warningf("skipping the record %q: %v", key, err)
	}
}

// gone takes one record away.
func (f *feed) gone(key string) {
	f.changed[key] = struct{}{}
	delete(f.records, key)
	delete(f.versions, key)
	delete(f.warned, key)
}

// watch follows changes until the watch ends, and returns why it did, "" if ctx did.
//
// It also looks at etcd now and then, and whenever the connection is back, for a watch
// can be deaf without a sign. It is not ended for a look: changes would be missed
// meanwhile. And what differs may be on its way, so the same has to differ several times.
func (f *feed) watch(ctx context.Context, back <-chan struct{}, list func([]Instance), fail func(error)) (why string) {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := f.watches.watch(wctx, f.cli, f.prefix, clientv3.WithPrefix(), clientv3.WithRev(f.header.Revision+1))
	probe := time.NewTimer(spread(f.probe))
	defer probe.Stop()

	results := make(chan lookResult, 1)
	var looking bool
	told := true // that etcd can be asked
	looks := looks{feed: f}
	look := func() {
		if looking || time.Since(looks.last) < minProbeInterval {
			probe.Reset(minProbeInterval)
			return
		}
		looking = true
		q := looks.next()
		go func() { results <- f.look(wctx, q) }()
	}
	for {
		select {
		case <-ctx.Done():
			return ""
		case <-f.again:
			look()
		case <-back:
			looks.owe()
			look()
		case <-probe.C:
			look()
		case l := <-results:
			looking = false
			looks.take(l)
			probe.Reset(looks.pause())
			if looks.failed {
				told = false
				if ctx.Err() == nil {
					fail(f.explain(l.err))
				}
				continue
			}
			if looks.differed >= doubts {
				logger.Warningf("etcd has lost its memory, or the watch has missed some: listing %q again", f.prefix)
				return dataDiffers
			}
			if !looks.doubt && !looks.owed {
				f.confirmed()
			}
			if !told {
				told = true
				list(f.instances())
			}
		case resp, ok := <-changes:
			ended, changed := f.take(changes, resp, ok)
			if changed {
				told = true
				f.confirmed()
				list(f.instances())
			}
			if ended != nil {
				if ctx.Err() != nil {
					return ""
				}
				logger.Infof("the watch of %q ended, listing again: %v", f.prefix, ended)
				return watchEnded
			}
		}
	}
}

var errWatchClosed = errors.New("its channel was closed")

// take takes in a response of a watch, and those that wait behind it, up to a bound: one
// list for all of a burst. It returns why the watch has ended, nil if it has not, and whether there was
// anything.
func (f *feed) take(changes clientv3.WatchChan, resp clientv3.WatchResponse, ok bool) (ended error, changed bool) {
	for n := 1; ; n++ {
		if !ok {
			return errWatchClosed, changed
		}
		if err := resp.Err(); err != nil {
			return err, changed
		}
		f.header = resp.Header
		for _, ev := range resp.Events {
			changed = true
			if f.agreed != nil && ev.Kv.ModRevision <= f.agreed.Revision {
				f.agreed = nil // the watch was behind, and may not tell the rest
			}
			if key := string(ev.Kv.Key); ev.Type == clientv3.EventTypeDelete {
				f.gone(key)
			} else {
				f.put(key, ev.Kv.Value, versionOf(ev.Kv))
			}
		}
		if n == burst {
			return nil, changed // what there is must not wait for an end that does not come
		}
		select {
		case resp, ok = <-changes:
		default:
			return nil, changed
		}
	}
}

// instances returns the list, which is not to be changed. Only what has changed since the
// last one is sorted: it is put among the others, which are as they were.
func (f *feed) instances() []Instance {
	if len(f.changed) == 0 && f.sorted != nil {
		return withoutShadows(f.sorted)
	}
	var fresh []Instance
	for key := range f.changed {
		if i, ok := f.records[key]; ok {
			fresh = append(fresh, i)
		}
	}
	sortInstances(fresh)
	list := make([]Instance, 0, len(f.records))
	for n := range f.sorted {
		old := &f.sorted[n]
		if _, ok := f.changed[old.Key]; ok {
			continue
		}
		for len(fresh) > 0 && fresh[0].compare(old) < 0 {
			list = append(list, fresh[0])
			fresh = fresh[1:]
		}
		list = append(list, *old)
	}
	f.sorted = append(list, fresh...)
	clear(f.changed)
	return withoutShadows(f.sorted)
}

// withoutShadows returns what clients see of list, which it does not change.
func withoutShadows(list []Instance) []Instance {
	return records.WithoutShadows(list, func(i *Instance) (id, addr string) { return i.Meta.ID, i.Addr })
}
