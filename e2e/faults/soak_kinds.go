package faults

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"
)

// victim is what a kind of fault happens to.
type victim int

const (
	wholeEtcd victim = iota
	etcdPath         // one side's way to it, or both
	aServer
	fleet
	aChannel
)

// kind is a fault that a soak can play, and what it excuses. What it does not excuse
// must not happen: a fault of etcd excuses no lost call and no move.
type kind struct {
	name        string
	victim      victim
	least, most time.Duration // how long it lasts
	members     int           // it takes an etcd of so many
	repeats     bool          // it is done several times
	returns     bool          // the server comes back, on the same port or another

	// away: clients are without the server, so its sessions may move, and calls that
	// require it may fail.
	away bool
	// breaks: its connections end, so calls that are on the wire may be lost.
	breaks bool
	// hides: who has no connection to it cannot find it or reach it. For those that had
	// one all is well, unless something else breaks it.
	hides bool

	// begin plays it, and returns what ends it; nil if there is nothing to end.
	begin func(s *soak, sp *spell) (heal func() error, err error)
}

func (k *kind) ofEtcd() bool { return k.victim == wholeEtcd || k.victim == etcdPath }

// newcomer is the id of the server by which the fleet is scaled out.
const newcomer = "x"

// leaving is what the newcomer does in the end.
var leaving = &kind{name: "leaves again", victim: aServer, away: true}

func kinds(members int) []*kind {
	const ms = time.Millisecond
	all := []*kind{
		{name: "etcd killed", least: 0, most: 3000 * ms, begin: etcdKilled},
		{name: "etcd stopped, for less than the TTL", least: 200 * ms, most: 1200 * ms, begin: etcdStopped},
		{name: "etcd stopped, for more than the TTL", least: 2500 * ms, most: 4000 * ms, hides: true, begin: etcdStopped},
		{name: "etcd wiped", least: 0, most: 1000 * ms, hides: true, begin: etcdWiped},
		{name: "the way to etcd cut", victim: etcdPath, least: 500 * ms, most: 4000 * ms, hides: true, begin: pathCut},
		{name: "the way to etcd black-holed", victim: etcdPath, least: 500 * ms, most: 4000 * ms, hides: true, begin: pathFrozen},
		{name: "the way to etcd slow", victim: etcdPath, least: 1000 * ms, most: 3000 * ms, begin: pathSlow},
		{name: "etcd's leader killed", members: 3, least: 500 * ms, most: 3000 * ms, begin: leaderKilled},
		{name: "etcd's leader stopped", members: 3, least: 500 * ms, most: 3000 * ms, hides: true, begin: leaderStopped},
		{name: "etcd's quorum lost", members: 3, least: 500 * ms, most: 3000 * ms, begin: quorumLost},

		{name: "killed, and back within the window", victim: aServer, least: 0, most: 1500 * ms, returns: true, away: true, breaks: true, begin: serverKilled},
		{name: "killed, and back after the window", victim: aServer, least: 3200 * ms, most: 4500 * ms, returns: true, away: true, breaks: true, begin: serverKilled},
		{name: "stopped, for less than the TTL", victim: aServer, least: 200 * ms, most: 1500 * ms, hides: true, begin: serverStopped},
		{name: "stopped, for more than the TTL", victim: aServer, least: 2500 * ms, most: 5000 * ms, hides: true, begin: serverStopped},
		{name: "drained, and replaced", victim: aServer, least: 0, most: 1000 * ms, returns: true, away: true, begin: serverDrained},
		{name: "loses its key to a hand", victim: aServer, hides: true, begin: keyDeleted},
		{name: "has its key overwritten with garbage", victim: aServer, hides: true, begin: keyGarbled},
		{name: "has its connections reset", victim: aServer, repeats: true, breaks: true, begin: serverReset},
		{name: "cut off", victim: aServer, least: 500 * ms, most: 4500 * ms, away: true, breaks: true, begin: serverCutOff},
		{name: "black-holed", victim: aServer, least: 500 * ms, most: 4000 * ms, hides: true, begin: serverFrozen},
		{name: "the fleet scaled out by one, and in again", victim: fleet, least: 1000 * ms, most: 3000 * ms, begin: scaledOut},
		{name: "closed, and opened anew", victim: aChannel, least: 0, most: 500 * ms, breaks: true, begin: channelReopened},
	}
	return slices.DeleteFunc(all, func(k *kind) bool { return k.members > members })
}

func etcdKilled(s *soak, _ *spell) (func() error, error) {
	s.world.etcd.each((*member).kill)
	return s.world.startEtcd, nil
}

func etcdStopped(s *soak, _ *spell) (func() error, error) {
	s.world.etcd.each((*member).stop)
	return func() error {
		s.world.etcd.each((*member).cont)
		return s.world.etcd.ready()
	}, nil
}

func etcdWiped(s *soak, _ *spell) (func() error, error) {
	s.world.etcd.each((*member).kill)
	var err error
	s.world.etcd.each(func(m *member) { err = errors.Join(err, m.wipe()) })
	return s.world.startEtcd, err
}

// paths does f to the proxies of one side of etcd, or of both.
func (s *soak) paths(of side, f func(*proxy) error) error {
	var err error
	s.world.etcd.each(func(m *member) {
		if of != servers {
			err = errors.Join(err, f(m.front))
		}
		if of != clients {
			err = errors.Join(err, f(m.back))
		}
	})
	return err
}

func pathCut(s *soak, sp *spell) (func() error, error) {
	err := s.paths(sp.side, func(p *proxy) error { p.refuse(); return nil })
	return func() error { return s.paths(sp.side, (*proxy).accept) }, err
}

func pathFrozen(s *soak, sp *spell) (func() error, error) {
	err := s.paths(sp.side, func(p *proxy) error { p.freeze(); return nil })
	return func() error { return s.paths(sp.side, func(p *proxy) error { p.thaw(); return nil }) }, err
}

func pathSlow(s *soak, sp *spell) (func() error, error) {
	delay := time.Duration(sp.times) * 50 * time.Millisecond
	err := s.paths(sp.side, func(p *proxy) error { p.slow(delay); return nil })
	return func() error { return s.paths(sp.side, func(p *proxy) error { p.slow(0); return nil }) }, err
}

func leaderKilled(s *soak, _ *spell) (func() error, error) {
	m, err := s.world.etcd.leader()
	if err != nil {
		return nil, err
	}
	m.kill()
	return s.world.startEtcd, nil
}

func leaderStopped(s *soak, _ *spell) (func() error, error) {
	m, err := s.world.etcd.leader()
	if err != nil {
		return nil, err
	}
	m.stop()
	return func() error { m.cont(); return s.world.etcd.ready() }, nil
}

func quorumLost(s *soak, _ *spell) (func() error, error) {
	s.world.etcd.members[0].kill()
	s.world.etcd.members[1].kill()
	return s.world.startEtcd, nil
}

func serverKilled(s *soak, sp *spell) (func() error, error) {
	s.book.hit(sp)
	sp.at.kill()
	return func() error { return s.restart(sp) }, nil
}

func serverDrained(s *soak, sp *spell) (func() error, error) {
	if err := sp.at.leave(); err != nil {
		return nil, err
	}
	return func() error { return s.restart(sp) }, nil
}

// restart starts the process of a server again, where it was or on another port.
func (s *soak) restart(sp *spell) error {
	if !sp.moved {
		return s.world.launch(sp.at, sp.at.listen)
	}
	front, err := newProxy("")
	if err != nil {
		return err
	}
	sp.at.front.close()
	sp.at.front = front
	return s.world.launch(sp.at, "")
}

func serverStopped(_ *soak, sp *spell) (func() error, error) {
	sp.at.process.signal(syscall.SIGSTOP)
	return func() error { sp.at.process.signal(syscall.SIGCONT); return nil }, nil
}

func serverReset(s *soak, sp *spell) (func() error, error) {
	for range sp.times {
		s.book.hit(sp)
		sp.at.front.cut(true)
		time.Sleep(300 * time.Millisecond)
	}
	return nil, nil
}

func serverCutOff(s *soak, sp *spell) (func() error, error) {
	s.book.hit(sp)
	sp.at.front.refuse()
	return sp.at.front.accept, nil
}

func serverFrozen(_ *soak, sp *spell) (func() error, error) {
	sp.at.front.freeze()
	return func() error { sp.at.front.thaw(); return nil }, nil
}

// byHand does f to etcd, when it is there.
func (s *soak) byHand(f func(ctx context.Context) error) (err error) {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(bg, time.Second)
		err = f(ctx)
		cancel()
		if err == nil {
			return nil
		}
	}
	return err
}

func keyDeleted(s *soak, sp *spell) (func() error, error) {
	return nil, s.byHand(func(ctx context.Context) error {
		_, err := s.world.direct.Delete(ctx, service+"/"+sp.server)
		return err
	})
}

func keyGarbled(s *soak, sp *spell) (func() error, error) {
	return nil, s.byHand(func(ctx context.Context) error {
		_, err := s.world.direct.Put(ctx, service+"/"+sp.server, "}{")
		return err
	})
}

func scaledOut(s *soak, _ *spell) (func() error, error) {
	x, err := s.world.start(newcomer, "")
	if err != nil {
		return nil, err
	}
	return func() error {
		s.book.begin(&incident{kind: leaving, server: newcomer}, x)
		err := x.leave()
		x.close()
		delete(s.world.servers, newcomer)
		return err
	}, nil
}

func channelReopened(s *soak, sp *spell) (func() error, error) {
	c := s.load.channels[sp.channel]
	c.gate.shut()
	c.gate.left(500 * time.Millisecond) // what then still waits for a server, is cut
	s.book.hit(sp)
	_ = c.conn.Load().Close()
	return func() error {
		defer c.gate.open()
		for i := range 20 { // so that what a channel leaves behind shows
			if err := c.dial(); err != nil {
				return err
			}
			c.conn.Load().Connect()
			time.Sleep(time.Duration(i%5) * time.Millisecond)
			_ = c.conn.Load().Close()
		}
		return c.dial()
	}, nil
}
