package faults

import (
	"fmt"
	"slices"
	"syscall"
	"time"
)

// fenceGrace is for how long clients keep servers in these rows.
const fenceGrace = 2 * time.Second

// fenceRows cut half of the servers off from etcd, and one client, and no client from any
// server. Every client has sessions of the same keys; another one comes when the servers
// have gone from etcd, or when clients have let go of them.
func fenceRows() []Row {
	row := func(name string, fence *time.Duration, late time.Duration, twice func(int) bool) Row {
		return Row{
			Group: "fence", Name: "half of the servers cut off: " + name, Short: true, Moves: []string{"a", "b"},
			Cut: true, Fence: fence, Grace: fenceGrace, Twice: twice,
			Fault: func(w *World) error { return w.cutOff(late) },
		}
	}
	none := func(n int) bool { return n == 0 }
	return []Row{
		// This is what a fence is for; a rig that did not see it would see nothing below.
		row("no fence", nil, 0, func(n int) bool { return n > 0 }),
		row("a fence that keeps as clients do", new(fenceGrace), fenceGrace, none),
		row("a fence that keeps nobody", new(time.Duration(0)), 0, none),
		{
			// What had come for it while it stood still is not taken when it wakes.
			Group: "fence", Name: "a server stopped until clients have let go, and continued", Moves: []string{"a"},
			Cut: true, Fence: new(time.Duration(0)), Grace: fenceGrace, Twice: none, Fault: (*World).standStill,
		},
	}
}

func (w *World) standStill() error {
	w.load.timeout.Store(int64(15 * time.Second))
	a := w.servers["a"]
	a.process.signal(syscall.SIGSTOP)
	if err := w.listed("b", "c", "d"); err != nil {
		return err
	}
	time.Sleep(fenceGrace + time.Second)
	a.process.signal(syscall.SIGCONT)
	w.mended()
	if _, err := a.process.line("state fenced", 5*time.Second); err != nil {
		return fmt.Errorf("it does not know that it was gone: %w", err)
	}
	if err := w.listed("a", "b", "c", "d"); err != nil {
		return err
	}
	return w.truth("a", "b", "c", "d")
}

func (w *World) cutOff(late time.Duration) error {
	first := slices.Concat(w.load.channels[0].etcd, w.servers["b"].etcd)
	lost := slices.Concat(first, w.servers["a"].etcd)
	for _, p := range first {
		p.refuse()
	}
	time.Sleep(ttl / 2) // so b's fence falls before a's: what b refuses must not go there
	for _, p := range w.servers["a"].etcd {
		p.refuse()
	}
	if err := w.listed("c", "d"); err != nil {
		return err
	}
	time.Sleep(late)
	if err := w.load.join(); err != nil {
		return err
	}
	w.load.work(w.load.channels[len(w.load.channels)-1])
	time.Sleep(fenceGrace + time.Second - late)
	for _, p := range lost {
		if err := p.accept(); err != nil {
			return err
		}
	}
	w.mended()
	if err := w.listed("a", "b", "c", "d"); err != nil {
		return err
	}
	return w.truth("a", "b", "c", "d")
}
