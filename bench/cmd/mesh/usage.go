package main

import (
	"os"
	"runtime"
)

// usage is what a process uses.
type usage struct {
	Heap, Stacks      int // bytes
	Goroutines, Files int
	Conns             int // that a server has
}

func used() (u usage) {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u.Heap, u.Stacks, u.Goroutines = int(m.HeapAlloc), int(m.StackInuse), runtime.NumGoroutine()
	if files, err := os.ReadDir("/proc/self/fd"); err == nil {
		u.Files = len(files)
	}
	return u
}

func (u usage) since(o usage) usage {
	return usage{u.Heap - o.Heap, u.Stacks - o.Stacks, u.Goroutines - o.Goroutines, u.Files - o.Files, u.Conns - o.Conns}
}

func (u usage) megabytes() float64 { return float64(u.Heap+u.Stacks) / 1e6 }
