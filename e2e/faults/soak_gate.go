package faults

import (
	"context"
	"sync"
	"time"
)

// gate holds calls back while it is shut.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // nil while it is open, closed when it opens
	inside int
}

// enter reports false if ctx ended first. Who has entered leaves.
func (g *gate) enter(ctx context.Context) bool {
	for {
		g.mu.Lock()
		opened := g.opened
		if opened == nil {
			g.inside++
			g.mu.Unlock()
			return true
		}
		g.mu.Unlock()
		select {
		case <-opened:
		case <-ctx.Done():
			return false
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened == nil {
		g.opened = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
	}
}

// left waits until nobody is inside, and reports false if that took too long.
func (g *gate) left(d time.Duration) bool {
	return until(d, "", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.inside == 0
	}) == nil
}
