package registry

import "sync"

// mailbox holds the newest list, and the newest error, that were not taken yet.
// What comes faster than it is taken becomes one.
type mailbox struct {
	ready chan struct{} // has a token while there is something to take

	mu      sync.Mutex
	newest  []Instance
	hasList bool
	err     error
}

func newMailbox() *mailbox { return &mailbox{ready: make(chan struct{}, 1)} }

func (m *mailbox) list(l []Instance) {
	m.mu.Lock()
	m.newest, m.hasList, m.err = l, true, nil
	m.mu.Unlock()
	m.signal()
}

func (m *mailbox) fail(err error) {
	m.mu.Lock()
	m.err = err
	m.mu.Unlock()
	m.signal()
}

func (m *mailbox) signal() {
	select {
	case m.ready <- struct{}{}:
	default:
	}
}

func (m *mailbox) take() (list []Instance, hasList bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	list, hasList, err = m.newest, m.hasList, m.err
	m.newest, m.hasList, m.err = nil, false, nil
	return list, hasList, err
}
