package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	official "go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc/resolver"
)

// Scheme is that of targets: "etcd:///game" is the service "game", and records are under
// "game/". As with the official resolver, what follows the third slash is the service as
// it stands: "etcd:////grpclb/game" is "/grpclb/game", "etcd:///chat:///game" is
// "chat:///game".
const Scheme = "etcd"

// firstAnswer is how long a new resolver waits for etcd before it says something:
// the last good list, if it has one, or that etcd is out of reach.
const firstAnswer = 200 * time.Millisecond

// NewBuilder returns a resolver for targets like "etcd:///game", for
// [google.golang.org/grpc.WithResolvers]. One builder may serve many channels. It
// remembers the last good list of each service, for a channel that was idle and
// wakes while etcd is away. Records are read as by [List].
//
// A channel learns of no server as "the list is empty", of an etcd that does not
// answer as an error that says so, and keeps the list that it had meanwhile.
func NewBuilder(cli *clientv3.Client, opts ...BuilderOption) (resolver.Builder, error) {
	if cli == nil {
		return nil, errNoClient
	}
	b := &builder{cli: cli, probe: probeInterval, made: time.Now(), last: make(map[string]goodList)}
	for _, o := range opts {
		if err := o.applyBuilder(b); err != nil {
			return nil, err
		}
	}
	return b, nil
}

type builder struct {
	cli   *clientv3.Client
	probe time.Duration
	plain bool // see feed

	made time.Time

	mu   sync.Mutex          // nothing is called under it
	last map[string]goodList // by service
}

type goodList struct {
	list      []Instance
	confirmed int64 // when etcd last did, by builder.now
}

func (b *builder) Scheme() string { return Scheme }

func (b *builder) lastList(service string) ([]Instance, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, ok := b.last[service]
	return l.list, ok
}

func (b *builder) keepList(service string, l goodList) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last[service] = l
}

// Build starts to resolve. It does no I/O. The official resolver does the work; the
// client that it is given is one whose KV and Watcher are ours, and the ClientConn
// puts back what it drops.
func (b *builder) Build(target resolver.Target, cc resolver.ClientConn, opts resolver.BuildOptions) (resolver.Resolver, error) {
	service := strings.TrimPrefix(target.URL.Path, "/")
	if service == "" {
		service = target.URL.Opaque
	}
	if err := checkService(b.cli, service); err != nil {
		return nil, fmt.Errorf("%w (in the target %q)", err, target.URL.String())
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &etcdResolver{
		ClientConn: cc,
		builder:    b,
		service:    service,
		ctx:        ctx,
		cancel:     cancel,
		news:       newMailbox(),
		again:      make(chan struct{}, 1),
		batches:    make(chan clientv3.WatchResponse),
		taken:      make(chan struct{}, 1),
		byKey:      make(map[string]*sentInstance),
	}
	cli := clientv3.NewCtxClient(ctx)
	cli.KV, cli.Watcher = silentKV{}, officialWatcher{r}
	ob, err := official.NewBuilder(cli)
	if err == nil {
		r.official, err = ob.Build(target, r, opts)
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("registry: official resolver: %w", err)
	}
	r.gauge = b.measure(service, target, opts.MetricsRecorder)
	r.start()
	return r, nil
}

// silentKV answers every Get with nothing, at once: the list comes by Watch.
type silentKV struct{ clientv3.KV }

func (silentKV) Get(context.Context, string, ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	return &clientv3.GetResponse{Header: &pb.ResponseHeader{}}, nil
}

// etcdResolver stands on both sides of the official resolver: it is behind the
// Watcher that feeds it, and it is the ClientConn that it reports to. Records pass
// through with their key as their address, so that two with one address stay two;
// here the key becomes address and metadata again.
type etcdResolver struct {
	resolver.ClientConn // gRPC's

	builder  *builder
	service  string
	gauge    *gauge
	official resolver.Resolver
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	news     *mailbox
	again    chan struct{} // ResolveNow
	batches  chan clientv3.WatchResponse
	taken    chan struct{} // the official resolver has taken in a batch

	mu    sync.Mutex
	sent  []*sentInstance          // what it has been sent, sorted
	byKey map[string]*sentInstance // the same
	turn  uint64                   // counts what it has handed on
}

// Close ends everything. It does not wait for etcd.
func (r *etcdResolver) Close() {
	r.cancel()
	r.official.Close()
	r.wg.Wait()
	r.gauge.close()
}

// ResolveNow looks whether etcd still is what was watched. Changes come by the
// watch, so there is nothing else to ask for.
func (r *etcdResolver) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case r.again <- struct{}{}:
	default:
	}
}

// start is called by Build, and not by Watch: the official resolver asks for its
// watch in a goroutine that may run after Close.
func (r *etcdResolver) start() {
	f := newFeed(r.builder.cli, r.service)
	f.probe, f.plain, f.again = r.builder.probe, r.builder.plain, r.again
	f.confirmed = func() { r.builder.confirm(r.service, r.gauge) }
	f.resynced = r.gauge.resynced
	_, f.listed = r.builder.lastList(r.service) // better than what a member that lags has
	r.wg.Go(func() {
		f.run(r.ctx, func(l []Instance) {
			r.builder.keepList(r.service, goodList{l, r.gauge.confirmed.Load()})
			r.news.list(l)
		}, r.news.fail)
	})
	r.wg.Go(func() {
		defer close(r.batches)
		r.deliver()
	})
}

// officialWatcher is the Watcher of the official resolver.
type officialWatcher struct{ *etcdResolver }

// Watch is called once. The channel ends when the resolver does, never before.
func (w officialWatcher) Watch(context.Context, string, ...clientv3.OpOption) clientv3.WatchChan {
	return w.batches
}

func (officialWatcher) RequestProgress(context.Context) error { return nil }

func (officialWatcher) Close() error { return nil }

// deliver hands lists on as differences, one at a time: the next is made when the
// last has been taken in. So a burst becomes a few batches, and the official code
// never holds one that nobody reads (it has no way out of that).
func (r *etcdResolver) deliver() {
	hasList := false
	timer := time.NewTimer(firstAnswer)
	defer timer.Stop()
	for {
		var list []Instance
		select {
		case <-r.ctx.Done():
			return
		case <-timer.C:
			if hasList {
				continue
			}
			l, ok := r.builder.lastList(r.service)
			if !ok {
				r.ReportError(fmt.Errorf("registry: etcd at %s is out of reach: no answer in %v",
					strings.Join(r.builder.cli.Endpoints(), ", "), firstAnswer))
				continue
			}
			list = l
		case <-r.news.ready:
			l, has, err := r.news.take()
			if err != nil && !hasList {
				if old, ok := r.builder.lastList(r.service); ok && !has {
					l, has = old, true
				} else {
					r.ReportError(err)
				}
			}
			if !has {
				continue
			}
			list = l
		}
		events := r.difference(list)
		if len(events) == 0 {
			if hasList {
				continue
			}
			// That there is none must be reported, but the official code passes
			// over an empty batch: delete what is not there.
			events = []*clientv3.Event{deleteEvent(r.service + "/")}
		}
		hasList = true
		select {
		case <-r.ctx.Done():
			return
		case r.batches <- clientv3.WatchResponse{Events: events}:
		}
		select {
		case <-r.ctx.Done():
			return
		case <-r.taken:
		}
	}
}

// sentInstance is an instance with its endpoint, which is made once: the policy sees at
// a glance that it is the same as before.
type sentInstance struct {
	Instance
	endpoint resolver.Endpoint
	turn     uint64 // when it was last handed on
}

// difference makes list, which is sorted, what was sent, and returns what that takes.
func (r *etcdResolver) difference(list []Instance) (events []*clientv3.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := make([]*sentInstance, len(list))
	old := r.sent
	var gone []*sentInstance
	for n := range list {
		i := &list[n]
		order := 1
		for len(old) > 0 {
			if order = old[0].compare(i); order >= 0 {
				break
			}
			gone = append(gone, old[0])
			old = old[1:]
		}
		if len(old) > 0 && order == 0 {
			now[n] = old[0]
			old = old[1:]
			if now[n].equal(i) {
				continue
			}
		}
		now[n] = &sentInstance{Instance: *i, endpoint: i.endpoint()}
		r.byKey[i.Key] = now[n]
		events = append(events, &clientv3.Event{
			Type: clientv3.EventTypePut,
			Kv:   &mvccpb.KeyValue{Key: []byte(i.Key), Value: keyAsAddress(i.Key)},
		})
	}
	for _, i := range append(gone, old...) {
		if r.byKey[i.Key] == i { // not under another id now
			delete(r.byKey, i.Key)
			events = append(events, deleteEvent(i.Key))
		}
	}
	r.sent = now
	return events
}

// keyAsAddress is a record of the official package whose address is its key.
func keyAsAddress(key string) []byte {
	value, _ := json.Marshal(endpoints.Endpoint{Addr: key}) // a struct of strings cannot fail
	return value
}

func deleteEvent(key string) *clientv3.Event {
	return &clientv3.Event{Type: clientv3.EventTypeDelete, Kv: &mvccpb.KeyValue{Key: []byte(key)}}
}

// UpdateState implements [resolver.ClientConn] for the official resolver.
func (r *etcdResolver) UpdateState(s resolver.State) error {
	r.mu.Lock()
	r.turn++
	n := 0
	for _, ep := range s.Endpoints {
		if i, ok := r.byKey[ep.Addresses[0].Addr]; ok && i.turn != r.turn {
			i.turn = r.turn
			n++
		}
	}
	s.Endpoints = make([]resolver.Endpoint, 0, n)
	for _, i := range r.sent {
		if i.turn == r.turn {
			s.Endpoints = append(s.Endpoints, i.endpoint)
		}
	}
	r.mu.Unlock()
	err := r.ClientConn.UpdateState(s)
	select {
	case r.taken <- struct{}{}:
	case <-r.ctx.Done():
	}
	return err
}
