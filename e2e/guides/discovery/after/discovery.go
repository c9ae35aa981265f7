// Package after is the client and the server of guide discovery on homing.
package after

import (
	"context"
	"log"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

// ServiceDiscovery knows the servers of a service.
type ServiceDiscovery struct {
	cli  *clientv3.Client
	mu   sync.Mutex
	list []registry.Instance
}

// NewServiceDiscovery returns one that knows none yet.
func NewServiceDiscovery(cli *clientv3.Client) *ServiceDiscovery {
	return &ServiceDiscovery{cli: cli}
}

// WatchService lists the servers of service, and follows their changes until ctx ends.
func (s *ServiceDiscovery) WatchService(ctx context.Context, service string) error {
	list, err := registry.List(ctx, s.cli, service, registry.WithPlainAddresses())
	if err != nil {
		return err
	}
	s.set(list)
	go func() {
		for list, err := range registry.Watch(ctx, s.cli, service, registry.WithPlainAddresses()) {
			if err != nil {
				log.Print("the last list stands: ", err)
				continue
			}
			s.set(list)
		}
	}()
	return nil
}

func (s *ServiceDiscovery) set(list []registry.Instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = list
}

// GetServices returns the servers' addresses.
func (s *ServiceDiscovery) GetServices() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var addrs []string
	for _, server := range s.list {
		if !server.Meta.Draining {
			addrs = append(addrs, server.Addr)
		}
	}
	return addrs
}
