package sim

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
)

var errRefused = errors.New("connection refused")

// zones are how many zones servers are in, in turn.
const zones = 3

// server is one that is played.
type server struct {
	number int32
	id     string
	hash   uint64
	addr   string
	starts int
	up     bool
}

func (s *server) zone() int { return int(s.number) % zones }

func (s *server) key() string { return service + "/" + s.id }

func isUp(s *server) bool { return s.up }

// world is the fleet.
type world struct {
	cfg      Config
	etcd     *etcd
	manager  endpoints.Manager
	clients  []*client
	sessions []*affinity.Session
	probes   []probe // one for each slot that is asked

	mu      sync.Mutex // guards what clients read of servers
	servers []*server
	byAddr  map[string]*server
}

func newWorld(cfg Config) (*world, error) {
	w := &world{cfg: cfg, etcd: newEtcd(), byAddr: make(map[string]*server)}
	cli := clientv3.NewCtxClient(context.Background())
	cli.KV = w.etcd
	var err error
	if w.manager, err = endpoints.NewManager(cli, service); err != nil {
		return nil, err
	}
	w.probes = probesOf(max(cfg.SlotStep, 1))
	return w, nil
}

// probe is a call by a key of a slot.
type probe struct {
	slot uint32
	ctx  context.Context
}

// probesOf finds a key of each slot, or of one slot in so many.
func probesOf(step int) (probes []probe) {
	seen := make([]bool, slotCount)
	for i := 0; len(probes) < (slotCount+step-1)/step; i++ {
		key := "probe-" + strconv.Itoa(i)
		if slot := slotOf(key); !seen[slot] && slot%uint32(step) == 0 {
			seen[slot] = true
			probes = append(probes, probe{slot, affinity.WithKey(context.Background(), key)})
		}
	}
	return probes
}

func (w *world) at(addr string) *server {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.byAddr[addr]
}

func (w *world) isUp(addr string) bool {
	s := w.at(addr)
	w.mu.Lock()
	defer w.mu.Unlock()
	return s != nil && s.up && s.addr == addr
}

// hire makes n servers that there were not, which are not up yet.
func (w *world) hire(n int) []*server {
	w.mu.Lock()
	defer w.mu.Unlock()
	for range n {
		i := len(w.servers)
		s := &server{number: int32(i), id: fmt.Sprintf("game-%d", i)}
		s.hash = hash(s.id)
		w.servers = append(w.servers, s)
	}
	return w.servers[len(w.servers)-n:]
}

// start starts servers, each on an address that nobody had, and registers them.
func (w *world) start(servers []*server) error {
	w.mu.Lock()
	for _, s := range servers {
		s.starts++
		s.up = true
		s.addr = fmt.Sprintf("10.%d.%d.%d:%d", s.number>>16, s.number>>8&255, s.number&255, 7000+s.starts)
		w.byAddr[s.addr] = s
	}
	w.mu.Unlock()
	return w.register(servers)
}

// register writes the records of servers, as package registry does.
func (w *world) register(servers []*server) error {
	var ups []*endpoints.UpdateWithOpts
	for _, s := range servers {
		m := endpointsmeta.Meta{ID: s.id, Incarnation: int64(1000 + s.starts), Zone: fmt.Sprintf("eu-central-1%c", 'a'+s.zone())}
		ups = append(ups, endpoints.NewAddUpdateOpts(s.key(), endpoints.Endpoint{Addr: s.addr, Metadata: m}))
	}
	return w.manager.Update(context.Background(), ups)
}

// kill ends servers without a goodbye. Their records stay, for the time of a lease.
func (w *world) kill(servers []*server) {
	var addrs []string
	w.mu.Lock()
	for _, s := range servers {
		s.up = false
		addrs = append(addrs, s.addr)
	}
	w.mu.Unlock()
	for _, c := range w.clients {
		c.hangUp(addrs)
	}
}

func (w *world) expire(servers []*server) {
	var keys []string
	for _, s := range servers {
		keys = append(keys, s.key())
	}
	w.etcd.expire(keys)
}

// join makes the clients that are whole.
func (w *world) join() error {
	for range w.cfg.Sampled {
		c, err := newClient(w)
		if err != nil {
			return err
		}
		w.clients = append(w.clients, c)
	}
	return nil
}

func (w *world) close() {
	for _, c := range w.clients {
		c.close()
	}
}

// pass lets time pass, and waits until nobody has anything to do.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// inGroups calls f with a group of servers at a time.
func inGroups(servers []*server, size int, f func(group []*server) error) error {
	for len(servers) > 0 {
		n := min(size, len(servers))
		if err := f(servers[:n]); err != nil {
			return err
		}
		servers = servers[n:]
	}
	return nil
}
