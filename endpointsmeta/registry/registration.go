package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	estats "google.golang.org/grpc/experimental/stats"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/internal/records"
)

// State is what a [Registration] is in.
type State int

// The states of a registration.
const (
	Registered State = iota // in etcd, for all to see
	Lost                    // not in etcd, or not known to be; it is being put back
	Draining                // in etcd, and taking nothing new, by its own word or its operator's
	Closed                  // withdrawn, for good
	Fenced                  // its [Fence] has fallen: its sessions are served elsewhere, and what it holds of them is stale
)

// String returns the state's name, in lower case.
func (s State) String() string {
	switch s {
	case Registered:
		return "registered"
	case Lost:
		return "lost"
	case Draining:
		return "draining"
	case Closed:
		return "closed"
	case Fenced:
		return "fenced"
	}
	return fmt.Sprintf("State(%d)", int(s))
}

// ErrClosed says that a registration was closed.
var ErrClosed = errors.New("registry: registration is closed")

const defaultTTL = 10 * time.Second

// Registration is a server's record in etcd, kept there until Close: whatever
// takes it away (the lease lost in an outage or a long pause of the process, the
// key deleted or overwritten by hand, etcd wiped) is answered by putting it back.
// It does not take its id back from another server that has got it meanwhile; it
// waits until the id is free. It is safe for concurrent use.
type Registration struct {
	cli                    *clientv3.Client
	service, id, key, addr string
	ttl                    time.Duration
	began                  time.Time // by the wall clock, for operators to read
	takeover               bool
	fence                  *Fence // nil if there is none
	notify                 func(State)
	recorder               estats.MetricsRecorder // nil if there is none
	told                   *notifier

	cancel context.CancelFunc
	done   chan struct{} // closed when the owner has ended
	closed chan struct{} // closed when Close has ended
	change chan struct{} // has a token when meta or intent is newer than the record
	back   chan struct{} // has a token when the record was lost and has been put back

	// What follows belongs to the goroutine that owns the record: Register's at first,
	// then run's, and Close's after that has ended. It alone puts.
	watches  watcher   // that of the intent comes by it, too
	leases   []lease   // that the record may be under; the last is the newest
	revision int64     // of the record as it was put last
	there    time.Time // when it was looked for last, and seen in its place

	// What follows belongs to watchIntent, and to Register before that is there.
	intentSeen int64              // the revision of the intent that was read last, 0 if there was none
	intentAt   *pb.ResponseHeader // of etcd, when Register read it; nil if it may not
	warned     bool               // that it may not be read, since when it last could be

	updating sync.Mutex // held while meta is changed, and not while it is put

	mu      sync.Mutex
	meta    endpointsmeta.Meta // what the server itself says
	intent  records.Intent     // what its operator says
	heeded  int64              // the revision of intent, 0 if there is none
	version int                // of meta and intent
	written int                // the version in etcd
	drains  bool               // it says so in etcd
	news    chan struct{}      // closed, and replaced, when written or closed changes
	state   State
	started bool
	closing bool
}

// Register puts a server into etcd under service and m.ID, at addr ("host:port" as
// clients reach it), and keeps it there until [Registration.Close]. An empty m.ID
// means addr. m.Incarnation is set here.
//
// It returns when the record is in etcd, or with an error when ctx ends or trying
// again cannot help. No two living servers can hold one id: the error is then
// [ErrIDTaken]. A record of the same address is that of a former self and is
// replaced at once. One of another address is waited for until its lease runs out
// (a server that died is gone after its TTL) or is seen to be renewed twice, within
// about two thirds of the holder's TTL.
func Register(ctx context.Context, cli *clientv3.Client, service, addr string, m endpointsmeta.Meta, opts ...RegisterOption) (*Registration, error) {
	if err := cmp.Or(checkService(cli, service), checkRecord(addr, m)); err != nil {
		return nil, err
	}
	m.ID = cmp.Or(m.ID, addr)
	if err := checkRecord(addr, m); err != nil { // an address need not be fit for an id
		return nil, err
	}
	m.Incarnation = 0
	m.Labels = maps.Clone(m.Labels)
	r := &Registration{
		cli:     cli,
		service: service,
		id:      m.ID,
		key:     service + "/" + m.ID,
		addr:    addr,
		ttl:     defaultTTL,
		meta:    m,
		began:   time.Now().UTC().Truncate(time.Second),
		change:  make(chan struct{}, 1),
		back:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		closed:  make(chan struct{}),
		news:    make(chan struct{}),
		version: 1,
	}
	if strings.Contains(m.ID, "/") {
		return nil, fmt.Errorf("registry: id must not contain a slash, got %q", m.ID)
	}
	for _, o := range opts {
		if err := o.applyRegister(r); err != nil {
			return nil, err
		}
	}
	if err := r.firstClaim(ctx); err != nil {
		r.revoke(context.WithoutCancel(ctx))
		return nil, err
	}
	r.told = newNotifier(r.notify)
	owner, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	written, version := r.newest()
	r.wrote(version, written.Draining)
	go r.run(owner)
	return r, nil
}

// Meta returns what the registration says of the server: what is in etcd, or what
// it is about to put there. It is draining, and has the weight, that the server or its
// operator says.
func (r *Registration) Meta() endpointsmeta.Meta {
	m, _ := r.newest()
	m.Labels = maps.Clone(m.Labels)
	return m.Meta
}

// own returns what the server itself says.
func (r *Registration) own() endpointsmeta.Meta {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.meta
	m.Labels = maps.Clone(m.Labels)
	return m
}

// State returns the present state.
func (r *Registration) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

// Lost reports whether the server is out of the registry, as far as it knows, and
// being put back: whether State is [Lost].
func (r *Registration) Lost() bool { return r.State() == Lost }

// Drain says that the server takes nothing new. It returns when that is in etcd.
// When ctx ends first it returns its error, but the server goes on to drain. An
// operator's word does not lift it.
func (r *Registration) Drain(ctx context.Context) error {
	return r.Update(ctx, func(m *endpointsmeta.Meta) { m.Draining = true })
}

// Update changes what the server says of itself; change gets a copy, without what its
// operator says, and must not itself update. ID and Incarnation cannot change. It returns
// when the change is in etcd; when ctx ends first it returns its error, but the change
// stands, and gets there. A weight that the operator has set stays until that is lifted.
func (r *Registration) Update(ctx context.Context, change func(*endpointsmeta.Meta)) error {
	want, err := r.changeMeta(change)
	if err != nil {
		return err
	}
	signal(r.change)
	for {
		r.mu.Lock()
		written, closing, news := r.written, r.closing, r.news
		r.mu.Unlock()
		switch {
		case written >= want:
			return nil
		case closing:
			return ErrClosed
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("registry: update of %q: %w", r.key, ctx.Err())
		}
	}
}

// changeMeta returns the version that the change makes.
func (r *Registration) changeMeta(change func(*endpointsmeta.Meta)) (version int, err error) {
	r.updating.Lock()
	defer r.updating.Unlock()
	old := r.own()
	m := r.own()
	change(&m)
	if err := checkRecord(r.addr, m); err != nil {
		return 0, err
	}
	if m.ID != old.ID || m.Incarnation != old.Incarnation {
		return 0, fmt.Errorf("registry: id and incarnation must not change, got %q and %d for %q and %d",
			m.ID, m.Incarnation, old.ID, old.Incarnation)
	}
	m.Labels = maps.Clone(m.Labels) // change may have kept the map
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closing {
		return 0, ErrClosed
	}
	r.meta = m
	r.version++
	return r.version, nil
}

// Close withdraws the server from etcd at once, by revoking its lease, and ends
// what belongs to the registration. When etcd cannot be told within ctx, all ends
// the same, and the error says that the record stays until its lease runs out.
// Closing again waits for the first to end, or for ctx.
func (r *Registration) Close(ctx context.Context) error {
	r.mu.Lock()
	again := r.closing
	r.closing = true
	r.mu.Unlock()
	if again {
		select {
		case <-r.closed:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("registry: close of %q: %w", r.key, ctx.Err())
		}
	}
	defer close(r.closed)
	r.cancel()
	<-r.done
	r.fence.close() // before the record goes, and when nobody lifts it any more
	err := r.revoke(ctx)
	r.setState(Closed)
	r.told.close()
	if err != nil {
		return fmt.Errorf("registry: close: the record %q stays for up to %v: %w", r.key, r.ttl, err)
	}
	return nil
}

// wrote notes that a version of meta is in etcd.
func (r *Registration) wrote(version int, draining bool) {
	r.mu.Lock()
	r.written = max(r.written, version)
	r.drains = draining
	r.mu.Unlock()
	if draining {
		r.setState(Draining)
	} else {
		r.setState(Registered)
	}
}

// setState changes the state. What is lost behind a fence that has fallen is fenced, and
// stays so until that is lifted.
func (r *Registration) setState(s State) {
	r.changeState(func(now State) State {
		if (s == Lost || now == Fenced && s != Closed) && r.fence.Fenced() {
			return Fenced
		}
		return s
	})
}

// changeState changes the state to what next makes of it, and tells of it.
func (r *Registration) changeState(next func(State) State) {
	r.mu.Lock()
	close(r.news)
	r.news = make(chan struct{})
	was, first := r.state, !r.started
	s := next(was)
	news := was != s || first
	if news {
		r.state, r.started = s, true
		r.told.add(s)
	}
	r.mu.Unlock()
	if news {
		logger.Infof("the server %q at %s is %v", r.key, r.addr, s)
	}
	if !first {
		r.record(was, s)
	}
}
