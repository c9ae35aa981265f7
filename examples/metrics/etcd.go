package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// startEtcd runs an etcd of one member in this process, on free ports of the
// loopback interface and with its data in a directory that stop removes.
func startEtcd() (endpoint string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "homing-metrics-etcd-")
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
