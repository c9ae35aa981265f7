package before

import (
	"context"
	"maps"
	"slices"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ServiceDiscovery knows the servers under a prefix.
type ServiceDiscovery struct {
	cli  *clientv3.Client
	mu   sync.Mutex
	list map[string]string // addresses by key
}

// NewServiceDiscovery returns one that knows none yet.
func NewServiceDiscovery(cli *clientv3.Client) *ServiceDiscovery {
	return &ServiceDiscovery{cli: cli, list: make(map[string]string)}
}

// WatchService lists the servers under prefix, and follows their changes until ctx ends.
func (s *ServiceDiscovery) WatchService(ctx context.Context, prefix string) error {
	resp, err := s.cli.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	for _, kv := range resp.Kvs {
		s.set(string(kv.Key), string(kv.Value))
	}
	go func() {
		for some := range s.cli.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1)) {
			for _, e := range some.Events {
				if e.Type == clientv3.EventTypeDelete {
					s.del(string(e.Kv.Key))
				} else {
					s.set(string(e.Kv.Key), string(e.Kv.Value))
				}
			}
		}
	}()
	return nil
}

func (s *ServiceDiscovery) set(key, addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list[key] = addr
}

func (s *ServiceDiscovery) del(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.list, key)
}

// GetServices returns the servers' addresses.
func (s *ServiceDiscovery) GetServices() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Values(s.list))
}
