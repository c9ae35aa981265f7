package e2e

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// The example of package registry that calls every server, on a real etcd.
func TestACallToEveryServerReachesEachOnce(t *testing.T) {
	cli := startEtcd(t).newClient()
	for _, id := range []string{"a", "b", "c"} {
		register(t, cli, startServer(t, id))
	}
	draining := register(t, cli, startServer(t, "d"))
	require.NoError(t, draining.Drain(bg))
	c := newChannel(t, cli, stickybalancer.Config{})

	servers, err := registry.List(bg, cli, service)
	require.NoError(t, err)
	var mu sync.Mutex
	heard := map[string]int{}
	var all sync.WaitGroup
	for _, s := range servers {
		all.Go(func() {
			id, err := c.call(affinity.Require(bg, s.Meta.ID))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				heard[id]++
			}
		})
	}
	all.Wait()
	require.Equal(t, map[string]int{"a": 1, "b": 1, "c": 1, "d": 1}, heard)
}
