package sim

import (
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/experimental/stats"
	"google.golang.org/grpc/resolver"
)

const (
	connectTime  = 5 * time.Millisecond
	firstBackoff = time.Second // then 1.6 times more each time, as gRPC has it
	lastBackoff  = 2 * time.Minute
)

// conn is a connection that comes up if the server at its address is up.
type conn struct {
	balancer.SubConn
	client   *client
	addr     string
	server   *server
	listener func(balancer.SubConnState)
	health   func(balancer.SubConnState)

	// Only the client's serve changes these.
	state  connectivity.State // under client.mu
	failed int                // in a row
	shut   bool
}

func (*client) MetricsRecorder() stats.MetricsRecorder { return stats.UnimplementedMetricsRecorder{} }
func (*client) Target() string                         { return target }
func (*client) ResolveNow(resolver.ResolveNowOptions)  {}

func (c *client) UpdateState(s balancer.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.picker = s.Picker
}

func (c *client) newest() balancer.Picker {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.picker
}

func (c *client) NewSubConn(addrs []resolver.Address, opts balancer.NewSubConnOptions) (balancer.SubConn, error) {
	sc := &conn{client: c, addr: addrs[0].Addr, server: c.world.at(addrs[0].Addr), listener: opts.StateListener}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns[sc.addr] = sc
	return sc, nil
}

func (sc *conn) RegisterHealthListener(l func(balancer.SubConnState)) {
	sc.health = l
	sc.client.do(func() {
		if !sc.shut && sc.state == connectivity.Ready {
			l(balancer.SubConnState{ConnectivityState: connectivity.Ready})
		}
	})
}

func (sc *conn) UpdateAddresses([]resolver.Address) {}

func (sc *conn) Shutdown() {
	c := sc.client
	c.mu.Lock()
	if c.conns[sc.addr] == sc {
		delete(c.conns, sc.addr)
	}
	c.mu.Unlock()
	c.do(func() {
		if !sc.shut {
			sc.is(connectivity.Shutdown, nil)
			sc.shut = true
		}
	})
}

func (sc *conn) Connect() {
	sc.client.do(func() {
		if sc.shut || sc.state != connectivity.Idle {
			return
		}
		sc.is(connectivity.Connecting, nil)
		time.AfterFunc(connectTime, func() { sc.client.do(sc.connected) })
	})
}

// connected ends an attempt to connect.
func (sc *conn) connected() {
	switch {
	case sc.shut:
	case sc.client.world.isUp(sc.addr):
		sc.failed = 0
		sc.is(connectivity.Ready, nil)
	default:
		sc.is(connectivity.TransientFailure, errRefused)
		pause := min(time.Duration(float64(firstBackoff)*pow(1.6, sc.failed)), lastBackoff)
		sc.failed++
		time.AfterFunc(pause, func() {
			sc.client.do(func() {
				if !sc.shut {
					sc.is(connectivity.Idle, nil)
				}
			})
		})
	}
}

// lost is called when the server's process has ended.
func (sc *conn) lost() {
	if !sc.shut && sc.state == connectivity.Ready {
		sc.is(connectivity.Idle, nil)
	}
}

func (sc *conn) is(s connectivity.State, err error) {
	sc.client.mu.Lock()
	sc.state = s
	sc.client.mu.Unlock()
	sc.listener(balancer.SubConnState{ConnectivityState: s, ConnectionError: err})
}

// hangUp ends the connections to these addresses.
func (c *client) hangUp(addrs []string) {
	c.do(func() {
		for _, addr := range addrs {
			c.mu.Lock()
			sc := c.conns[addr]
			c.mu.Unlock()
			if sc != nil {
				sc.lost()
			}
		}
	})
}

// connected counts the READY connections.
func (c *client) connected() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sc := range c.conns {
		if sc.state == connectivity.Ready {
			n++
		}
	}
	return n
}

func pow(x float64, n int) float64 {
	y := 1.
	for range n {
		y *= x
	}
	return y
}
