package sim

import (
	"slices"
	"time"
)

const (
	leaseTime = 10 * time.Second // until etcd takes away the record of who has died
	leaseRate = 500              // so many each half second
	settled   = 45 * time.Second // past every window and grace
)

// events are played one after another. Each returns how many picks went astray on the
// way, and the CPU time that it took to ask.
var events = []struct {
	name string
	play func(w *world, homes []int32) (astray int, asking time.Duration, err error)
}{
	{"rolling restart", (*world).restart},
	{"a zone is lost", (*world).loseZone},
	{"it is back", (*world).regainZone},
	{"half as many join", (*world).grow},
	{"etcd is out", (*world).outage},
}

// asking asks one client for all homes, and what that cost.
type asking struct {
	world  *world
	turn   int
	astray int
	cost   time.Duration
}

func (a *asking) ask(want func(slot uint32, at int32) bool) {
	w := a.world
	began := processTime()
	i := a.turn % len(w.clients)
	a.turn++
	a.astray += w.strays(w.clients[i:i+1], want)
	a.cost += processTime() - began
}

func (a *asking) homesAmong(in func(*server) bool) []int32 {
	began := processTime()
	defer func() { a.cost += processTime() - began }()
	return homesAmong(a.world.servers, in)
}

// restart kills each server, a fiftieth of them at a time, which is back after half a
// second under its id at another address. Meanwhile its keys wait, and no other moves.
func (w *world) restart(homes []int32) (int, time.Duration, error) {
	a := asking{world: w}
	err := inGroups(slices.Clone(w.servers), max(len(w.servers)/50, 1), func(batch []*server) error {
		w.kill(batch)
		pass(500 * time.Millisecond)
		a.ask(func(slot uint32, at int32) bool {
			if home := homes[slot]; w.servers[home].up {
				return at == home
			}
			return at == nowhere
		})
		if err := w.start(batch); err != nil {
			return err
		}
		started := make(map[int32]bool, len(batch))
		for _, s := range batch {
			started[s.number] = true
		}
		pass(connectTime / 2)
		a.ask(func(slot uint32, at int32) bool {
			return at == homes[slot] || at == nowhere && started[homes[slot]]
		})
		pass(500 * time.Millisecond)
		w.wake()
		a.ask(func(slot uint32, at int32) bool { return at == homes[slot] })
		return nil
	})
	pass(settled)
	return a.astray, a.cost, err
}

// loseZone kills every third server. Their keys wait for the reconnect window, then they
// move, once: not again when the list follows, as leases end.
func (w *world) loseZone(homes []int32) (int, time.Duration, error) {
	a := asking{world: w}
	var lost []*server
	for _, s := range w.servers {
		if s.zone() == 0 {
			lost = append(lost, s)
		}
	}
	w.kill(lost)
	pass(2 * time.Second)
	a.ask(func(slot uint32, at int32) bool {
		if home := homes[slot]; w.servers[home].up {
			return at == home
		}
		return at == nowhere
	})
	w.wake()
	pass(4 * time.Second)
	left := a.homesAmong(isUp)
	here := func(slot uint32, at int32) bool { return at == left[slot] }
	a.ask(here)
	pass(leaseTime - 6*time.Second)
	err := inGroups(lost, leaseRate, func(group []*server) error {
		w.expire(group)
		pass(500 * time.Millisecond)
		return nil
	})
	a.ask(here)
	pass(settled)
	return a.astray, a.cost, err
}

// regainZone is who was lost, started anew.
func (w *world) regainZone(homes []int32) (int, time.Duration, error) {
	var back []*server
	for _, s := range w.servers {
		if s.zone() == 0 {
			back = append(back, s)
		}
	}
	return w.arrive(homes, back)
}

func (w *world) grow(homes []int32) (int, time.Duration, error) {
	return w.arrive(homes, w.hire(w.cfg.Servers/2))
}

// arrive starts servers within five seconds. On the way a key is where it was, or where
// it will be, or waits for that one to be connected.
func (w *world) arrive(homes []int32, servers []*server) (int, time.Duration, error) {
	a := asking{world: w}
	coming := make(map[*server]bool)
	for _, s := range servers {
		coming[s] = true
	}
	then := a.homesAmong(func(s *server) bool { return s.up || coming[s] })
	n := 0
	err := inGroups(servers, max(len(servers)/50, 1), func(group []*server) error {
		if err := w.start(group); err != nil {
			return err
		}
		pass(100 * time.Millisecond)
		if n++; n%10 == 5 {
			w.wake()
			a.ask(func(slot uint32, at int32) bool {
				return at == homes[slot] || at == then[slot] || at != nowhere && coming[w.servers[at]]
			})
		}
		return nil
	})
	pass(settled)
	return a.astray, a.cost, err
}

// outage stops etcd for a minute, in which one server of a hundred dies. It comes back
// with no records, as after leases that ended; who lives registers anew within five
// seconds, and is kept until then.
func (w *world) outage(homes []int32) (int, time.Duration, error) {
	a := asking{world: w}
	w.etcd.stop()
	pass(10 * time.Second)
	var dead, living []*server
	for i, s := range w.servers {
		if i%100 == 7 || len(w.servers) < 100 && i == 7 {
			dead = append(dead, s)
		} else {
			living = append(living, s)
		}
	}
	w.kill(dead)
	pass(time.Second)
	w.wake()
	pass(9 * time.Second)
	left := a.homesAmong(isUp)
	here := func(slot uint32, at int32) bool { return at == left[slot] }
	a.ask(here)
	pass(40 * time.Second)
	w.etcd.startEmpty()
	pass(3 * time.Second)
	a.ask(here)
	n := 0
	err := inGroups(living, max(len(living)/50, 1), func(group []*server) error {
		if err := w.register(group); err != nil {
			return err
		}
		pass(100 * time.Millisecond)
		if n++; n%10 == 5 {
			w.wake()
			a.ask(here)
		}
		return nil
	})
	a.ask(here)
	pass(settled)
	return a.astray, a.cost, err
}
