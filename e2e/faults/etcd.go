package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/homing-grpc/homing/e2e/internal/port"
)

// member is one etcd, a process.
type member struct {
	name         string
	client, peer string // its own addresses
	cluster      string
	dir          string
	process      *process // nil while it is not running

	front *proxy // between it and the clients under test
	back  *proxy // between it and the servers
}

// cluster is an etcd of one or three members.
type cluster struct {
	dir     string
	members []*member
}

func newCluster(n int) (c *cluster, err error) {
	c = &cluster{}
	if c.dir, err = os.MkdirTemp("", "homing-faults-"); err != nil {
		return nil, err
	}
	var peers []string
	for i := range n {
		m := &member{name: fmt.Sprint("m", i)}
		m.dir = filepath.Join(c.dir, m.name)
		if m.client, err = port.FreeAddr(); err != nil {
			return nil, err
		}
		if m.peer, err = port.FreeAddr(); err != nil {
			return nil, err
		}
		if m.front, err = newProxy(m.client); err != nil {
			return nil, err
		}
		if m.back, err = newProxy(m.client); err != nil {
			return nil, err
		}
		c.members = append(c.members, m)
		peers = append(peers, m.name+"=http://"+m.peer)
	}
	for _, m := range c.members {
		m.cluster = strings.Join(peers, ",")
	}
	return c, nil
}

func (m *member) start() (err error) {
	m.process, err = spawn("etcd", nil, nil,
		"--name="+m.name, "--data-dir="+m.dir,
		"--listen-client-urls=http://"+m.client, "--advertise-client-urls=http://"+m.client,
		"--listen-peer-urls=http://"+m.peer, "--initial-advertise-peer-urls=http://"+m.peer,
		"--initial-cluster="+m.cluster, "--initial-cluster-state=new",
		"--heartbeat-interval=25", "--election-timeout=250",
		"--unsafe-no-fsync", "--log-level=error")
	return err
}

func (m *member) kill() {
	if m.process != nil {
		m.process.kill()
		m.process = nil
	}
}

func (m *member) stop() { m.process.signal(syscall.SIGSTOP) }
func (m *member) cont() { m.process.signal(syscall.SIGCONT) }

// wipe loses the data; the member must not be running.
func (m *member) wipe() error { return os.RemoveAll(m.dir) }

// each does f to all members.
func (c *cluster) each(f func(*member)) {
	for _, m := range c.members {
		f(m)
	}
}

func (c *cluster) start() error {
	for _, m := range c.members {
		if m.process == nil {
			if err := m.start(); err != nil {
				return err
			}
		}
	}
	return c.ready()
}

// ready waits until etcd answers.
func (c *cluster) ready() error {
	cli, err := c.connect(func(m *member) string { return m.client })
	if err != nil {
		return err
	}
	defer cli.Close()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		_, err = cli.Get(ctx, "ready")
		cancel()
		if err == nil {
			return nil
		}
	}
	var logs []string
	c.each(func(m *member) {
		if m.process != nil {
			logs = append(logs, m.process.output())
		}
	})
	return fmt.Errorf("etcd is not ready: %w\n%s", err, strings.Join(logs, "\n"))
}

// connect returns a client by the way that via says.
func (c *cluster) connect(via func(*member) string) (*clientv3.Client, error) {
	var endpoints []string
	for _, m := range c.members {
		endpoints = append(endpoints, via(m))
	}
	return connect(endpoints, true)
}

func connect(endpoints []string, keepalive bool) (*clientv3.Client, error) {
	cfg := clientv3.Config{
		Endpoints: endpoints,
		Logger:    zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: time.Second,
		})},
	}
	if keepalive {
		cfg.DialKeepAliveTime, cfg.DialKeepAliveTimeout = 10*time.Second, 2*time.Second
	}
	return clientv3.New(cfg)
}

// leader returns the member that leads.
func (c *cluster) leader() (*member, error) {
	for _, m := range c.members {
		if m.process == nil {
			continue
		}
		cli, err := connect([]string{m.client}, true)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		s, err := cli.Status(ctx, m.client)
		cancel()
		_ = cli.Close()
		if err == nil && s.Leader == s.Header.MemberId {
			return m, nil
		}
	}
	return nil, errors.New("no member leads")
}

func (c *cluster) close() {
	c.each(func(m *member) {
		m.kill()
		m.front.close()
		m.back.close()
	})
	_ = os.RemoveAll(c.dir)
}
