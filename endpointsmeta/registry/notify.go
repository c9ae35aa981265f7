package registry

import "sync"

// notifier calls a function with every state, in order, on one goroutine, which
// lives only while there is something to tell.
type notifier struct {
	f func(State)

	mu      sync.Mutex
	queue   []State
	running bool
	closed  bool
}

func newNotifier(f func(State)) *notifier { return &notifier{f: f} }

func (n *notifier) add(s State) {
	if n == nil || n.f == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	n.queue = append(n.queue, s)
	if !n.running {
		n.running = true
		go n.run()
	}
}

func (n *notifier) run() {
	for {
		n.mu.Lock()
		if len(n.queue) == 0 {
			n.running = false
			n.mu.Unlock()
			return
		}
		s := n.queue[0]
		n.queue = n.queue[1:]
		n.mu.Unlock()
		n.f(s)
	}
}

// close takes nothing more; what was added is still told.
func (n *notifier) close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
}
