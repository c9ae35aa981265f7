package bench

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
)

// changes are what happens to one endpoint of n. For policies that read no metadata,
// two of them are the same list again, made anew.
var changes = []struct {
	name     string
	from, to func(all resolver.State) resolver.State
}{
	{"added", withoutMiddle, unchanged},
	{"removed", unchanged, withoutMiddle},
	{"reweighted", unchanged, func(s resolver.State) resolver.State {
		return withMiddle(s, func(m *endpointsmeta.Meta) { m.Weight = 2 })
	}},
	{"drained", unchanged, func(s resolver.State) resolver.State {
		return withMiddle(s, func(m *endpointsmeta.Meta) { m.Draining = true })
	}},
}

// BenchmarkChange is a list in which one endpoint of n is another than before, until
// the policy returns: a picker is then published. Connections are as they were, those of
// whom it adds to be made; homes are warm, and their table follows aside. Who leaves, leaves at
// once, which our policy does without a grace. How long the table takes is in BenchmarkHomesFollow
// of package stickybalancer.
func BenchmarkChange(b *testing.B) {
	noGrace := subject{ours.label, ours.policy, `{"absentGrace": "0s"}`}
	for _, n := range sizes {
		for _, s := range []subject{roundRobin, theRecipe, ringHash, ringHash64k, authzed, noGrace} {
			if !s.affords(n) && s != noGrace {
				continue
			}
			var r *rig // the last change leaves it as it was, but for connections that no one asks for
			for _, c := range changes {
				b.Run(fmt.Sprintf("n=%d/change=%s/policy=%s", n, c.name, s.label), func(b *testing.B) {
					if r == nil {
						r = warm(b, s, n)
						warmHomes(s, r)
					}
					from, to := c.from(r.state), c.to(r.state)
					reset := func() {
						r.update(b, from)
						r.channel.connect()
						time.Sleep(2*time.Millisecond + time.Duration(n)*2*time.Microsecond) // what goes on aside
					}
					var took []time.Duration
					for b.Loop() {
						reset()
						start := time.Now()
						r.update(b, to)
						took = append(took, time.Since(start))
						r.channel.connect()
					}
					b.ReportMetric(middle(took), "ns/op")
					allocs := uint64(1 << 63)
					for range 3 {
						reset()
						allocs = min(allocs, mallocs(func() { r.update(b, to) }))
						r.channel.connect()
					}
					b.ReportMetric(float64(allocs), "allocs/op")
					r.update(b, r.state)
					r.channel.connect()
				})
			}
			drop(s, n)
		}
	}
}

func unchanged(s resolver.State) resolver.State { return s }

func withoutMiddle(s resolver.State) resolver.State {
	i := len(s.Endpoints) / 2
	s.Endpoints = slices.Delete(slices.Clone(s.Endpoints), i, i+1)
	s.Addresses = slices.Delete(slices.Clone(s.Addresses), i, i+1)
	return s
}

func withMiddle(s resolver.State, change func(*endpointsmeta.Meta)) resolver.State {
	i := len(s.Endpoints) / 2
	s.Endpoints = slices.Clone(s.Endpoints)
	m := endpointsmeta.Meta{ID: id(i)}
	change(&m)
	s.Endpoints[i] = endpointsmeta.Set(s.Endpoints[i], m)
	return s
}

// warmHomes asks for the homes of many keys, of a policy that keeps them.
func warmHomes(s subject, r *rig) {
	if s.policy != ours.policy {
		return
	}
	p, _ := r.channel.newest()
	for _, k := range manyKeys {
		_, _ = p.Pick(balancer.PickInfo{Ctx: affinity.WithKey(bg, k)})
	}
}

// mallocs is how often do allocates, and what runs beside it.
func mallocs(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.Mallocs - before.Mallocs
}

// middle is the median, for that of an operation among others the machine may take away
// the processor at any time.
func middle(took []time.Duration) float64 {
	slices.Sort(took)
	return float64(took[len(took)/2].Nanoseconds())
}
