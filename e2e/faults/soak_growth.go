package faults

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Growth is how much of something there was when the soak was warm, or a server had
// started, and at the end; both times without calls under way.
type Growth struct {
	What          string
	Before, After int64
	Most          int64 // that After may be
}

// How much more there may be at the end: a connection that is about to close is no growth,
// nor is what a pool keeps.
const (
	moreGoroutines = 10
	moreFiles      = 8
	moreHeap       = 2 << 20  // and a tenth
	moreMemory     = 24 << 20 // of a process; and a half
)

// holding is what a process holds.
type holding struct {
	goroutines, files int64
	heap, memory      int64 // bytes in use after a collection, and resident
}

// measure stops the load for a moment, and measures this process and the servers.
func (s *soak) measure() holding {
	defer s.load.open()
	if !s.load.shut() {
		s.book.violated("calls do not end")
	}
	_ = until(5*time.Second, "at rest", atRest())
	s.measureServers()
	return holding{goroutines: int64(runtime.NumGoroutine()), files: openFiles(), heap: int64(heap())}
}

// measureNew measures servers that have started since they were last measured.
func (s *soak) measureNew() {
	s.mu.Lock()
	known := true
	for _, pid := range s.pids() {
		_, seen := s.first[pid]
		known = known && seen
	}
	s.mu.Unlock()
	if known {
		return
	}
	defer s.load.open()
	if !s.load.shut() {
		s.book.violated("calls do not end")
	}
	s.measureServers()
}

// measureServers notes what servers hold that are seen for the first time, and returns
// what all hold.
func (s *soak) measureServers() map[string]holding {
	time.Sleep(200 * time.Millisecond) // for streams that were hung up
	all := make(map[string]holding)
	for id, sv := range s.world.servers {
		pid := sv.process.cmd.Process.Pid
		name := strconv.Itoa(pid)
		s.mu.Lock()
		delete(s.holds, name)
		s.mu.Unlock()
		sv.process.signal(syscall.SIGUSR1)
		var h holding
		err := until(30*time.Second, "server "+id+" says what it holds", func() (ok bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			h, ok = s.holds[name]
			return ok
		})
		if err != nil {
			s.book.violated("%v", err)
			continue
		}
		h.memory = resident(pid)
		all[name] = h
		s.mu.Lock()
		if _, seen := s.first[name]; !seen {
			s.first[name] = h
		}
		s.mu.Unlock()
	}
	return all
}

// hold takes a server's report of what it holds.
func (s *soak) hold(line string) bool {
	var pid string
	var h holding
	if n, _ := fmt.Sscanf(line, "holds %s %d %d", &pid, &h.goroutines, &h.heap); n != 3 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds[pid] = h
	return true
}

// grown compares the end with what was before.
func (s *soak) grown(before holding) (all []Growth) {
	add := func(what string, before, after, most int64) {
		if before < 0 || after < 0 {
			return // not known here
		}
		g := Growth{what, before, after, most}
		if after > most {
			s.book.violated("%s grew from %d to %d, and may to %d", what, before, after, most)
		}
		all = append(all, g)
	}
	if !s.load.shut() {
		s.book.violated("calls do not end")
	}
	most := before.goroutines + moreGoroutines
	_ = until(10*time.Second, "at rest", func() bool { return runtime.NumGoroutine() <= int(before.goroutines) })
	add("goroutines of the client", before.goroutines, int64(runtime.NumGoroutine()), most)
	add("open files of the client", before.files, openFiles(), before.files+moreFiles)
	add("heap of the client", before.heap, int64(heap()), before.heap+before.heap/10+moreHeap)
	var after map[string]holding
	_ = until(10*time.Second, "at rest", func() bool {
		after = s.measureServers()
		for pid, h := range after {
			if h.goroutines > s.first[pid].goroutines+moreGoroutines {
				return false
			}
		}
		return true
	})
	pids := s.pids()
	for _, id := range slices.Sorted(maps.Keys(pids)) {
		pid := pids[id]
		a, b := s.first[pid], after[pid]
		name := "server " + id + ": "
		add(name+"goroutines", a.goroutines, b.goroutines, a.goroutines+moreGoroutines)
		add(name+"heap", a.heap, b.heap, a.heap+a.heap/10+moreHeap)
		add(name+"resident memory", a.memory, b.memory, a.memory+a.memory/2+moreMemory)
	}
	return all
}

// openFiles returns how many files this process has open, -1 if the system does not say.
func openFiles() int64 {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return int64(len(d))
}

// resident returns a process's resident memory in bytes, -1 if the system does not say.
func resident(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return -1
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return -1
	}
	n, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil {
		return -1
	}
	return n * int64(os.Getpagesize())
}
