package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
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
	b := &builder{cli: cli, probe: probeInterval, last: make(map[string][]Instance)}
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

	mu   sync.Mutex
	last map[string][]Instance // by service
}

func (b *builder) Scheme() string { return Scheme }

func (b *builder) lastList(service string) ([]Instance, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, ok := b.last[service]
	return l, ok
}

func (b *builder) keepList(service string, l []Instance) {
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
	official resolver.Resolver
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	news     *mailbox
	again    chan struct{} // ResolveNow
	batches  chan clientv3.WatchResponse
	taken    chan struct{} // the official resolver has taken in a batch

	mu   sync.Mutex
	sent map[string]sentInstance // what it has been sent, by key
}

// Close ends everything. It does not wait for etcd.
func (r *etcdResolver) Close() {
	r.cancel()
	r.official.Close()
	r.wg.Wait()
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
	_, f.listed = r.builder.lastList(r.service) // better than what a member that lags has
	r.wg.Go(func() {
		f.run(r.ctx, func(l []Instance) {
			r.builder.keepList(r.service, l)
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
}

// difference makes list what was sent, and returns what that takes.
func (r *etcdResolver) difference(list []Instance) []*clientv3.Event {
	now := make(map[string]sentInstance, len(list))
	var events []*clientv3.Event
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range list {
		if old, ok := r.sent[i.Key]; ok && old.equal(i) {
			now[i.Key] = old
		} else {
			now[i.Key] = sentInstance{i, i.endpoint()}
			events = append(events, &clientv3.Event{
				Type: clientv3.EventTypePut,
				Kv:   &mvccpb.KeyValue{Key: []byte(i.Key), Value: keyAsAddress(i.Key)},
			})
		}
	}
	for key := range r.sent {
		if _, ok := now[key]; !ok {
			events = append(events, deleteEvent(key))
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
	list := make([]sentInstance, 0, len(s.Endpoints))
	for _, ep := range s.Endpoints {
		if i, ok := r.sent[ep.Addresses[0].Addr]; ok {
			list = append(list, i)
		}
	}
	r.mu.Unlock()
	slices.SortFunc(list, func(a, b sentInstance) int { return a.compare(b.Instance) })
	s.Endpoints = make([]resolver.Endpoint, len(list))
	for n, i := range list {
		s.Endpoints[n] = i.endpoint
	}
	err := r.ClientConn.UpdateState(s)
	select {
	case r.taken <- struct{}{}:
	case <-r.ctx.Done():
	}
	return err
}
