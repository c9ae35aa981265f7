package sim

import (
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/homing-grpc/homing/stickybalancer"
)

// Config is the size of what is played.
type Config struct {
	Servers int
	Clients int // that traffic and connections are counted for
	Keys    int // each with a session
	Sampled int // clients that are whole

	// Policy is the config that the clients have.
	Policy stickybalancer.Config

	// SlotStep has only one slot in so many asked of all clients, and on the way.
	SlotStep int

	Log io.Writer
}

// Row is what one event did.
type Row struct {
	Event             string
	Servers           int // that are up after it
	Keys, Sessions    Moves
	Astray            int           // picks that went where they may not: on the way, and on any client after it
	Before, After     float64       // keys of the busiest server over the mean
	SessionsAfter     float64       // sessions of it
	Lists             int           // that one client took in
	Longest           time.Duration // CPU time of the longest of them
	CPU               time.Duration // of a client for all of it: watch, resolver, policy, homes
	Events            int           // that a watch told one client
	WatchBytes        int           // that took
	ListBytes, Looked int           // bytes of other reads, of one client
}

// Result is what was seen.
type Result struct {
	Config Config
	Rows   []Row
	Idle   traffic // of one client in ten minutes in which nothing happens
	Record int     // bytes of a record in etcd, with its key
}

// Run plays the events, one after another, and fails t if anything moves without need.
func Run(t *testing.T, cfg Config) (r Result) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w, err := newWorld(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer w.close()
		if r, err = w.play(); err != nil {
			t.Fatal(err)
		}
	})
	for _, row := range r.Rows {
		if bad := row.Keys.Needless + row.Sessions.Needless + row.Astray; bad > 0 {
			t.Errorf("%s: %d needless key moves, %d needless session moves, %d picks astray",
				row.Event, row.Keys.Needless, row.Sessions.Needless, row.Astray)
		}
	}
	return r
}

// play returns a row for each event.
func (w *world) play() (Result, error) {
	r := Result{Config: w.cfg}
	if err := w.start(w.hire(w.cfg.Servers)); err != nil {
		return r, err
	}
	for _, kv := range w.etcd.records {
		r.Record += len(kv.Key) + len(kv.Value)
	}
	r.Record /= w.cfg.Servers
	if err := w.join(); err != nil {
		return r, err
	}
	pass(10 * time.Second)
	for i, c := range w.clients {
		if n, want := c.connected(), w.unasked(); n != want {
			return r, fmt.Errorf("client %d has %d connections at first, of %d", i, n, want)
		}
	}
	w.wake()
	homes := homesAmong(w.servers, isUp)
	at := w.look()
	astray := w.strays(w.clients, func(slot uint32, at int32) bool { return at == homes[slot] })
	w.log("all is up; %d of %d slots astray", astray, len(w.probes)*len(w.clients))

	before := w.clients[0].etcd.soFar()
	pass(10 * time.Minute)
	r.Idle = w.clients[0].etcd.soFar().since(before)
	for i, e := range events {
		row := Row{Event: e.name, Before: busiest(at.keys, w.servers)}
		if i == 0 {
			row.Astray = astray
		}
		c := w.clients[0]
		lists, _ := c.took()
		for _, c := range w.clients {
			c.took()
		}
		traffic, cpu := c.etcd.soFar(), processTime()
		onWay, cost, err := e.play(w, homes)
		if err != nil {
			return r, fmt.Errorf("%s: %w", e.name, err)
		}
		row.Astray += onWay
		row.CPU = (processTime() - cpu - cost) / time.Duration(len(w.clients))
		did := c.etcd.soFar().since(traffic)
		row.Events, row.WatchBytes, row.ListBytes, row.Looked = did.events, did.watchBytes, did.listBytes, did.lookBytes
		for i, c := range w.clients {
			n, longest := c.took()
			if row.Longest = max(row.Longest, longest); i == 0 {
				row.Lists = n - lists
			}
		}
		w.wake()
		homesNow := homesAmong(w.servers, isUp)
		now := w.look()
		row.Keys = keyMoves(at, now, homes, homesNow)
		row.Sessions = sessionMoves(at, now, homesNow, w.servers)
		row.After, row.SessionsAfter = busiest(now.keys, w.servers), busiest(now.sessions, w.servers)
		row.Astray += w.strays(w.clients, func(slot uint32, at int32) bool { return at == homesNow[slot] })
		for _, s := range w.servers {
			if s.up {
				row.Servers++
			}
		}
		homes, at = homesNow, now
		r.Rows = append(r.Rows, row)
		w.log("%s: %+v", e.name, row)
	}
	return r, nil
}

// unasked is how many connections a client has before its first call.
func (w *world) unasked() int {
	switch p := w.cfg.Policy; {
	case p.Connect != stickybalancer.ConnectLazy:
		return w.cfg.Servers
	default:
		return min(p.SubsetSize, w.cfg.Servers)
	}
}

func (w *world) log(format string, args ...any) {
	if w.cfg.Log != nil {
		fmt.Fprintf(w.cfg.Log, format+"\n", args...)
	}
}
