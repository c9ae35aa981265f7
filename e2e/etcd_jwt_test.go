package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// A watch goes by a stream of the client's other watches, if there is one, and etcd looks at
// the token that this was opened with. Signed tokens end, however often they are used.
func TestAWatchDoesNotBeginOnAStreamWhoseSignedTokenHasEnded(t *testing.T) {
	const tokenTTL = time.Second
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte("0123456789012345678901234567890123456789"), 0o600))
	e := newEtcd(t)
	e.adjust = func(cfg *embed.Config) {
		cfg.BcryptCost = 4
		cfg.AuthToken = "jwt,sign-method=HS256,priv-key=" + secret + ",ttl=" + tokenTTL.String()
	}
	e.start()
	direct := e.newClient()
	_, err := direct.UserAdd(bg, "root", "pw")
	require.NoError(t, err)
	_, err = direct.UserGrantRole(bg, "root", "root")
	require.NoError(t, err)
	_, err = direct.AuthEnable(bg)
	require.NoError(t, err)

	r := newRequests()
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{e.client.Host}, Logger: zap.NewNop(),
		Username: "root", Password: "pw", DialTimeout: 10 * time.Second, DialOptions: []grpc.DialOption{grpc.WithStatsHandler(r)}})
	require.NoError(t, err)
	t.Cleanup(func() { cli.Close() })
	register(t, e.newClientAs(clientv3.Config{Username: "root", Password: "pw"}), startServer(t, "a"))
	newChannel(t, cli, stickybalancer.Config{}).sees("a")
	for i := range 6 { // each holds on to its stream
		began := time.Now()
		within(t, 10*time.Second, func() bool { return time.Since(began) > 2*tokenTTL }, "the token has ended")

		b, err := registry.NewBuilder(cli, registry.WithProbeInterval(time.Hour))
		require.NoError(t, err)
		newChannelWith(t, b, stickybalancer.Config{}).sees("a")
		soon(t, func() bool { streams, _ := r.of("/etcdserverpb.Watch/Watch"); return streams > i+1 }, "a stream with a token that counts")
	}
}
