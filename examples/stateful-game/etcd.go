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

// startEtcd runs an etcd of one member in this process, on free ports of the
// loopback interface and with its data in a directory that stop removes.
func startEtcd() (endpoint string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "stateful-game-etcd-")
	if err != nil {
		return "", nil, err
	}
	anyPort := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = anyPort, anyPort
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = anyPort, anyPort
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.UnsafeNoFsync = true // nobody will miss this data

	e, err := embed.StartEtcd(cfg)
	stop = func() {
		if e != nil {
			e.Close()
		}
		_ = os.RemoveAll(dir)
	}
	if err == nil {
		select {
		case <-e.Server.ReadyNotify():
			return e.Clients[0].Addr().String(), stop, nil
		case err = <-e.Err():
		case <-time.After(10 * time.Second):
			err = errors.New("it is not ready after 10 s")
		}
	}
	stop()
	return "", nil, fmt.Errorf("start embedded etcd: %w", err)
}

// connectEtcd returns a client of an etcd that has answered. Neither the client
// nor anything above it needs the answer to begin with; whoever starts a
// program by hand wants to know at once that there is nobody there.
func connectEtcd(ctx context.Context, endpoints []string) (*clientv3.Client, error) {
	connect := backoff.DefaultConfig
	connect.BaseDelay, connect.MaxDelay = 100*time.Millisecond, time.Second
	cli, err := clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		Logger:               zap.NewNop(), // what matters comes back as an error
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: connect, MinConnectTimeout: time.Second}),
		},
	})
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
