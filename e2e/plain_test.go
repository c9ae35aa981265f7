package e2e

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	official "go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// newChannelTo is a channel to target that reads plain addresses, too.
func newChannelTo(t *testing.T, cli *clientv3.Client, target string) *channel {
	t.Helper()
	b, err := registry.NewBuilder(cli, registry.WithPlainAddresses())
	require.NoError(t, err)
	conn, err := grpc.NewClient(target, append(affinity.DialOptions(), grpc.WithResolvers(b),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()))...)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return &channel{t: t, conn: conn, rpc: testpb.NewTestServiceClient(conn)}
}

func TestPlainAddressesAreReadBesideOurRecords(t *testing.T) {
	for _, c := range []struct{ layout, service, target, key string }{
		{"name of the node", "game", "etcd:///game", "game/node1"},
		{"lease", "game", "etcd:///game", "game/7587883212297104133"},
		{"leading slash", "/grpclb/game", "etcd:////grpclb/game", "/grpclb/game/127.0.0.1:1"},
		{"schema", "chat:///game", "etcd:///chat:///game", "chat:///game/127.0.0.1:1"},
	} {
		t.Run(c.layout, func(t *testing.T) {
			cli := startEtcd(t).newClient()
			old, ours := startServer(t, "old"), startServer(t, "ours")
			put(t, cli, c.key, old.addr)
			reg, err := registry.Register(bg, cli, c.service, ours.addr, endpointsmeta.Meta{ID: "ours"})
			require.NoError(t, err)
			defer reg.Close(bg)

			ch := newChannelTo(t, cli, c.target)
			ch.sees("old", "ours")
			ch.reaches("old", affinity.Require(bg, old.addr))
			ch.reaches("ours", affinity.Require(bg, "ours"))

			list, err := registry.List(bg, cli, c.service, registry.WithPlainAddresses())
			require.NoError(t, err)
			require.Len(t, list, 2)
			for list, err := range registry.Watch(t.Context(), cli, c.service, registry.WithPlainAddresses()) {
				require.NoError(t, err)
				require.Len(t, list, 2)
				break
			}
			list, err = registry.List(bg, cli, c.service)
			require.NoError(t, err)
			require.Len(t, list, 1, "without the option")
		})
	}
}

func TestAServerUpgradedInPlaceIsOneServerUnderItsID(t *testing.T) {
	cli := startEtcd(t).newClient()
	a := startServer(t, "a")
	put(t, cli, service+"/7587883212297104133", a.addr) // of the old binary, which was killed
	put(t, cli, service+"/"+a.addr, `{"Addr":"`+a.addr+`"}`)
	register(t, cli, a)
	c := newChannelTo(t, cli, "etcd:///"+service)
	c.sees("a")
	c.reaches("a", affinity.Require(bg, "a"))
	list, err := registry.List(bg, cli, service, registry.WithPlainAddresses())
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Equal(t, "a", list[0].ID)
}

func TestAPlainAddressUnderOurKeyIsALivingServer(t *testing.T) {
	cli := startEtcd(t).newClient()
	put(t, cli, service+"/node1", "127.0.0.1:1")
	_, err := registry.Register(bg, cli, service, "127.0.0.1:2", endpointsmeta.Meta{ID: "node1"})
	require.ErrorIs(t, err, registry.ErrIDTaken)
	reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "node1"})
	require.NoError(t, err, "the same server")
	require.NoError(t, reg.Close(bg))
}

func TestEtcdsOwnResolverUnderCallsThatNameIDsIsWarnedOf(t *testing.T) {
	logs.on.Store(true)
	defer logs.on.Store(false)
	cli := startEtcd(t).newClient()
	a := startServer(t, "a")
	register(t, cli, a)
	b, err := official.NewBuilder(cli)
	require.NoError(t, err)
	c := newChannelWith(t, b, stickybalancer.Config{ReconnectWindow: -1})
	c.sees("a")
	const warning = "use registry.NewBuilder in place of etcd's own resolver"
	before := strings.Count(logs.text(), warning)
	c.reaches("a", affinity.Require(bg, a.addr))
	require.Equal(t, before, strings.Count(logs.text(), warning))
	c.reaches("a", affinity.With(bg, "a"))
	soon(t, func() bool { return strings.Count(logs.text(), warning) == before+1 }, "it is warned of")
}
