package e2e

import (
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	embedded "github.com/homing-grpc/homing/e2e/internal/etcd"
	"github.com/homing-grpc/homing/e2e/internal/port"
)

// etcd is a real etcd server in this process, on one address for all its life.
type etcd struct {
	t      testing.TB
	dir    string
	client url.URL
	peer   url.URL
	server *embed.Etcd
	adjust func(*embed.Config) // nil if it is as all others
}

// newEtcd returns one that is not started yet.
func newEtcd(t testing.TB) *etcd {
	t.Helper()
	e := &etcd{t: t, dir: t.TempDir(), client: freeURL(t), peer: freeURL(t)}
	t.Cleanup(e.stop)
	return e
}

func startEtcd(t testing.TB) *etcd {
	t.Helper()
	e := newEtcd(t)
	e.start()
	return e
}

func freeURL(t testing.TB) url.URL {
	t.Helper()
	addr, err := port.FreeAddr()
	require.NoError(t, err)
	return url.URL{Scheme: "http", Host: addr}
}

func (e *etcd) start() {
	e.t.Helper()
	var err error
	e.server, err = embedded.Start(e.dir, func(cfg *embed.Config) {
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{e.client}, []url.URL{e.client}
		cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{e.peer}, []url.URL{e.peer}
		if e.adjust != nil {
			e.adjust(cfg)
		}
	})
	require.NoError(e.t, err)
}

func (e *etcd) stop() {
	if e.server != nil {
		e.server.Close()
		<-e.server.Server.StopNotify()
		e.server = nil
	}
}

// wipe loses all data; etcd must be stopped.
func (e *etcd) wipe() { e.dir = e.t.TempDir() }

// newClient returns a client of e that is closed with the test.
func (e *etcd) newClient() *clientv3.Client {
	e.t.Helper()
	return e.newClientAs(clientv3.Config{})
}

// newClientAs is newClient with what cfg says of who it is.
func (e *etcd) newClientAs(cfg clientv3.Config) *clientv3.Client {
	e.t.Helper()
	cli, err := clientv3.New(clientv3.Config{
		Endpoints:            []string{e.client.String()},
		TLS:                  cfg.TLS,
		Username:             cfg.Username,
		Password:             cfg.Password,
		Logger:               zap.NewNop(),
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, MaxDelay: 500 * time.Millisecond},
		})},
	})
	require.NoError(e.t, err)
	e.t.Cleanup(func() { cli.Close() })
	return cli
}

// soon requires that f becomes true; polling, for these tests use real time.
func soon(t *testing.T, f func() bool, what string) {
	t.Helper()
	within(t, 10*time.Second, f, what)
}

func within(t *testing.T, d time.Duration, f func() bool, what string) {
	t.Helper()
	deadline := time.Now().Add(d)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", d, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
