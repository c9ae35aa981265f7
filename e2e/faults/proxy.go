package faults

import (
	"net"
	"sync"
	"time"
)

// proxy stands before a TCP server and does to its connections what networks do.
type proxy struct {
	addr string

	mu      sync.Mutex
	target  string
	lis     net.Listener // nil while it refuses
	conns   map[*pair]struct{}
	frozen  chan struct{} // closed when it thaws; nil if it is not frozen
	delay   time.Duration
	closed  bool
	serving sync.WaitGroup
}

// pair is a connection and the one behind it.
type pair struct{ down, up net.Conn }

func newProxy(target string) (*proxy, error) {
	p := &proxy{target: target, conns: make(map[*pair]struct{})}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p.addr = lis.Addr().String()
	p.serve(lis)
	return p, nil
}

// newProxies makes a proxy before each target.
func newProxies(targets []string) (ps []*proxy, err error) {
	for _, target := range targets {
		p, err := newProxy(target)
		if err != nil {
			return ps, err
		}
		ps = append(ps, p)
	}
	return ps, nil
}

func addrs(ps []*proxy) (addrs []string) {
	for _, p := range ps {
		addrs = append(addrs, p.addr)
	}
	return addrs
}

func (p *proxy) serve(lis net.Listener) {
	p.lis = lis
	p.serving.Go(func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			go p.join(c)
		}
	})
}

func (p *proxy) join(down net.Conn) {
	p.wait() // a frozen one takes connections, and that is all
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	up, err := net.DialTimeout("tcp", target, time.Second)
	if err != nil {
		_ = down.Close()
		return
	}
	c := &pair{down, up}
	p.mu.Lock()
	if p.closed || p.lis == nil {
		p.mu.Unlock()
		_ = down.Close()
		_ = up.Close()
		return
	}
	p.conns[c] = struct{}{}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.copy(up, down); _ = up.Close() })
	both.Go(func() { p.copy(down, up); _ = down.Close() })
	both.Wait()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

func (p *proxy) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.wait()
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// wait holds what passes while the proxy is frozen, and delays it.
func (p *proxy) wait() {
	p.mu.Lock()
	frozen, delay := p.frozen, p.delay
	p.mu.Unlock()
	if delay > 0 {
		time.Sleep(delay)
	}
	if frozen != nil {
		<-frozen
	}
}

// freeze lets nothing through, and tells nobody: neither end sees anything.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen == nil {
		p.frozen = make(chan struct{})
	}
}

func (p *proxy) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen != nil {
		close(p.frozen)
		p.frozen = nil
	}
}

// slow delays everything that passes.
func (p *proxy) slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// cut ends all connections; reset says by RST rather than FIN.
func (p *proxy) cut(reset bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		for _, conn := range []net.Conn{c.down, c.up} {
			if tcp, ok := conn.(*net.TCPConn); ok && reset {
				_ = tcp.SetLinger(0)
			}
			_ = conn.Close()
		}
	}
}

// refuse ends all connections and takes no more, until accept.
func (p *proxy) refuse() {
	p.mu.Lock()
	lis := p.lis
	p.lis = nil
	p.mu.Unlock()
	if lis != nil {
		_ = lis.Close()
	}
	p.cut(true)
}

func (p *proxy) accept() error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		lis, err := net.Listen("tcp", p.addr)
		if err == nil {
			p.mu.Lock()
			p.serve(lis)
			p.mu.Unlock()
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

func (p *proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.thaw()
	p.refuse()
	p.serving.Wait()
}
