package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// etcdTimeout bounds everything that waits for etcd at the start.
const etcdTimeout = 3 * time.Second

// etcdServer is an etcd of one member in this process, on ports of the loopback
// interface.
type etcdServer struct {
	dir          string
	client, peer url.URL
	running      *embed.Etcd // nil if it is not
}

// startEtcd runs an etcd on free ports, with its data in a directory that stop
// removes.
func startEtcd() (endpoint string, stop func(), err error) {
	e, err := newEtcd()
	if err != nil {
		return "", nil, err
	}
	return e.client.Host, e.remove, nil
}

// newEtcd starts an etcd on free ports, which it keeps for as long as it is used.
func newEtcd() (*etcdServer, error) {
	dir, err := os.MkdirTemp("", "stateful-game-etcd-")
	if err != nil {
		return nil, err
	}
	anyPort := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	e := &etcdServer{dir: dir, client: anyPort, peer: anyPort}
	if err := e.start(); err != nil {
		e.remove()
		return nil, err
	}
	e.client.Host = e.running.Clients[0].Addr().String()
	e.peer.Host = e.running.Peers[0].Addr().String()
	return e, nil
}

// start starts it, with what it knew when it was stopped.
func (s *etcdServer) start() error {
	cfg := embed.NewConfig()
	cfg.Dir = s.dir
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{s.client}, []url.URL{s.client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{s.peer}, []url.URL{s.peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.UnsafeNoFsync = true // nobody will miss this data

	e, err := embed.StartEtcd(cfg)
	if err == nil {
		select {
		case <-e.Server.ReadyNotify():
			s.running = e
			return nil
		case err = <-e.Err():
		case <-time.After(10 * time.Second):
			err = errors.New("it is not ready after 10 s")
		}
	}
	if e != nil {
		e.Close()
	}
	return fmt.Errorf("start embedded etcd: %w", err)
}

// stop stops it. It waits for the connections of its clients to end, for a while.
func (s *etcdServer) stop() {
	if s.running != nil {
		s.running.Close()
		s.running = nil
	}
}

// remove stops it and removes its data.
func (s *etcdServer) remove() {
	s.stop()
	_ = os.RemoveAll(s.dir)
}

// connectEtcd returns a client of an etcd that has answered. Neither the client
// nor anything above it needs the answer to begin with; whoever starts a
// program by hand wants to know at once that there is nobody there.
func connectEtcd(ctx context.Context, endpoints []string) (*clientv3.Client, error) {
	cli, err := newEtcdClient(endpoints)
	if err == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, etcdTimeout)
		defer cancel()
		// Any key will do.
		if _, err = cli.Get(ctx, "stateful-game"); err == nil {
			return cli, nil
		}
		_ = cli.Close()
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("waited %v", etcdTimeout)
		}
	}
	return nil, fmt.Errorf("no answer from etcd at %s: %w", strings.Join(endpoints, ","), err)
}

// newEtcdClient returns a client that does not ask whether anybody is there.
func newEtcdClient(endpoints []string, opts ...grpc.DialOption) (*clientv3.Client, error) {
	connect := backoff.DefaultConfig
	connect.BaseDelay, connect.MaxDelay = 100*time.Millisecond, time.Second
	return clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		Logger:               zap.NewNop(), // what matters comes back as an error
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		DialOptions: append(opts,
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: connect, MinConnectTimeout: time.Second})),
	})
}
