package main

import (
	"testing"

	"github.com/homing-grpc/homing/bench/sim"
	"github.com/homing-grpc/homing/stickybalancer"
)

func TestABadFlagIsNamed(t *testing.T) {
	good := sim.Config{Servers: 10, Clients: 5, Keys: 1, Sampled: 5, Policy: stickybalancer.Config{Connect: "EAGER", SubsetSize: 20}}
	if err := check(good, nil); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(c *sim.Config){
		"-servers must be 10 to 50000, got 0":        func(c *sim.Config) { c.Servers = 0 },
		"-servers must be 10 to 50000, got 50001":    func(c *sim.Config) { c.Servers = 50_001 },
		"-clients must be 1 to 10000000, got -1":     func(c *sim.Config) { c.Clients = -1 },
		"-keys must be 1 to 100000000, got 0":        func(c *sim.Config) { c.Keys = 0 },
		"-sampled must be 1 to 5, got 6":             func(c *sim.Config) { c.Sampled = 6 },
		"-sampled must be 1 to 5, got 0":             func(c *sim.Config) { c.Sampled = 0 },
		"-subset must be 0 to 50000, got -1":         func(c *sim.Config) { c.Policy.SubsetSize = -1 },
		`-connect must be EAGER or LAZY, got "lazy"`: func(c *sim.Config) { c.Policy.Connect = "lazy" },
	} {
		bad := good
		spoil(&bad)
		if err := check(bad, nil); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if err := check(good, []string{"20"}); err == nil || err.Error() != `there are flags only, got "20"` {
		t.Errorf("an argument: got %v", err)
	}
}
