package e2e

import (
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/homing-grpc/homing/stickybalancer"
)

// proxy forwards TCP connections, until it is told to drop what flows on those
// that there are: silently, as a firewall does that forgot them.
type proxy struct {
	lis  net.Listener
	to   string
	mu   sync.Mutex
	off  bool // it takes no new ones
	drop []*dropped
	dead []net.Conn // of which it was dropped while it was off
}

type dropped struct {
	conn net.Conn
	mu   sync.Mutex
	dead bool
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{lis: lis, to: to}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := lis.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(in) })
		}
	})
	t.Cleanup(func() { lis.Close(); wg.Wait() })
	return p
}

func (p *proxy) serve(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer out.Close()
	d := &dropped{conn: in}
	p.mu.Lock()
	off := p.off
	p.drop = append(p.drop, d)
	p.mu.Unlock()
	if off {
		return
	}
	done := make(chan struct{}, 2)
	pipe := func(to, from net.Conn) {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			d.mu.Lock()
			dead := d.dead
			d.mu.Unlock()
			if n > 0 && !dead {
				if _, err := to.Write(buf[:n]); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
	go pipe(out, in)
	go pipe(in, out)
	<-done
}

// forget drops, from now on, all that flows on the present connections.
func (p *proxy) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.drop {
		d.mu.Lock()
		d.dead = true
		d.mu.Unlock()
	}
	p.drop = nil
}

// cut drops what flows, and takes no new connections.
func (p *proxy) cut() {
	p.mu.Lock()
	p.off = true
	for _, d := range p.drop {
		p.dead = append(p.dead, d.conn)
	}
	p.mu.Unlock()
	p.forget()
}

// restore ends a cut. Who is still on a connection that was dropped is told.
func (p *proxy) restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off = false
	for _, conn := range p.dead {
		conn.Close()
	}
	p.dead = nil
}

// Fact 11: without keepalive on the client's side nobody ever notices.
func TestAWatchOnADroppedFlowComesBack(t *testing.T) {
	e := startEtcd(t)
	p := newProxy(t, e.client.Host)
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: []string{p.lis.Addr().String()}, Logger: zap.NewNop(),
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: time.Second, PermitWithoutStream: true,
	})
	require.NoError(t, err)
	defer cli.Close()
	direct := e.newClient()
	register(t, direct, startServer(t, "a"))
	c := newChannel(t, cli, stickybalancer.Config{})
	c.sees("a")
	p.forget()
	register(t, direct, startServer(t, "b"))
	within(t, 25*time.Second, func() bool {
		for range 4 {
			if id, err := c.call(bg); err == nil && id == "b" {
				return true
			}
		}
		return false
	}, "the new server is seen")
}
