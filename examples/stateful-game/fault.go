package main

import (
	"context"
	"net"
	"sync"
)

// wires are the TCP connections that go through one dialer or one listener, so
// that they can be cut. They stand for the cable, and for kill -9.
type wires struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func (w *wires) track(c net.Conn) net.Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conns == nil {
		w.conns = make(map[net.Conn]struct{})
	}
	w.conns[c] = struct{}{}
	return &wire{Conn: c, wires: w}
}

// cut ends the connections to addr, or all if it is "", in the middle of
// whatever they do, and returns how many there were.
func (w *wires) cut(addr string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		if addr != "" && c.RemoteAddr().String() != addr {
			continue
		}
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset, not a goodbye
		}
		_ = c.Close()
		delete(w.conns, c)
		n++
	}
	return n
}

// dial is for grpc.WithContextDialer.
func (w *wires) dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return w.track(c), nil
}

type wire struct {
	net.Conn
	wires *wires
}

func (w *wire) Close() error {
	w.wires.mu.Lock()
	delete(w.wires.conns, w.Conn)
	w.wires.mu.Unlock()
	return w.Conn.Close()
}

// wiredListener tracks what it accepts.
type wiredListener struct {
	net.Listener
	wires wires
}

func (l *wiredListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.wires.track(c), nil
}

// kill ends the listener and all its connections without a goodbye.
func (l *wiredListener) kill() {
	_ = l.Close()
	l.wires.cut("")
}
