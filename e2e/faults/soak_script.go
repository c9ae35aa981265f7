package faults

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// incident is one fault of a soak: what happens, to whom, and for how long.
type incident struct {
	kind    *kind
	server  string        // the victim, if it is a server
	channel int           // likewise, a channel
	side    side          // whose way to etcd it is about
	after   time.Duration // from the beginning of its step
	lasts   time.Duration
	times   int  // of what is done again and again
	moved   bool // a server comes back on another port
}

// side is who is on one side of etcd.
type side int

const (
	everybody side = iota
	clients
	servers
)

func (s side) String() string { return [...]string{"everybody", "clients", "servers"}[s] }

func (i *incident) String() string {
	s := i.kind.name
	switch i.kind.victim {
	case aServer:
		s = "server " + i.server + " " + s
		if i.kind.returns && i.moved {
			s += ", on another port"
		}
	case aChannel:
		s = fmt.Sprint("channel ", i.channel, " ", s)
	case etcdPath:
		s += " for " + i.side.String()
	}
	if i.kind.repeats {
		s += fmt.Sprintf(", %d times", i.times)
	}
	if i.lasts > 0 {
		s += fmt.Sprintf(", for %v", i.lasts)
	}
	return s
}

// step is one fault, or two that overlap, after a time of peace.
type step struct {
	pause     time.Duration
	incidents []*incident
}

func (s step) String() string {
	var parts []string
	for _, i := range s.incidents {
		p := i.String()
		if i.after > 0 {
			p = fmt.Sprintf("%v later %s", i.after, p)
		}
		parts = append(parts, p)
	}
	return strings.Join(parts, "; ")
}

// lasts is how long the step's faults are under way.
func (s step) lasts() time.Duration {
	var most time.Duration
	for _, i := range s.incidents {
		most = max(most, i.after+i.lasts)
	}
	return s.pause + most
}

// script draws the steps of a soak. They depend on the seed and on the numbers of
// servers, channels and members alone, and not on what happens when they are played.
type script struct {
	rng      *rand.Rand
	kinds    []*kind
	bag      []*kind // of those, what has yet to come before anything comes again
	servers  []string
	channels int
}

func newScript(seed uint64, kinds []*kind, servers []string, channels int) *script {
	return &script{rng: rand.New(rand.NewPCG(seed, 0)), kinds: kinds, servers: servers, channels: channels}
}

// next draws a step.
func (s *script) next() step {
	st := step{
		pause:     s.between(100*time.Millisecond, 600*time.Millisecond),
		incidents: []*incident{s.draw()},
	}
	if s.rng.IntN(5) < 2 {
		first, second := st.incidents[0], s.draw()
		second.after = s.between(0, max(first.lasts, 200*time.Millisecond))
		if first.goesWith(second) {
			st.incidents = append(st.incidents, second)
		} else {
			s.bag = append(s.bag, second.kind) // it will come
		}
	}
	return st
}

// draw takes a fault out of the bag. What it draws does not depend on the kind.
func (s *script) draw() *incident {
	if len(s.bag) == 0 {
		s.bag = slices.Clone(s.kinds)
	}
	n := s.rng.IntN(len(s.bag))
	i := &incident{
		kind:    s.bag[n],
		server:  s.servers[s.rng.IntN(len(s.servers))],
		channel: s.rng.IntN(s.channels),
		side:    side(s.rng.IntN(3)),
		times:   1 + s.rng.IntN(4),
		moved:   s.rng.IntN(2) == 0,
	}
	i.lasts = s.between(i.kind.least, i.kind.most)
	s.bag = slices.Delete(s.bag, n, n+1)
	return i
}

// goesWith reports whether both can be played at once.
func (i *incident) goesWith(o *incident) bool {
	switch {
	case i.kind == o.kind, i.kind.ofEtcd() && o.kind.ofEtcd():
		return false
	case i.kind.victim == aServer && o.kind.victim == aServer:
		return i.server != o.server
	}
	return true
}

func (s *script) between(least, most time.Duration) time.Duration {
	d := least + time.Duration(s.rng.Int64N(int64(most-least)+1))
	return d.Round(10 * time.Millisecond)
}
