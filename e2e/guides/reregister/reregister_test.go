package reregister

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/e2e/guides/guidetest"
	"github.com/homing-grpc/homing/e2e/guides/reregister/after"
	"github.com/homing-grpc/homing/e2e/guides/reregister/before"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

func TestANewClientReachesOldAndNewServers(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	old := guidetest.Start(t, cli, "game-1", before.Serve)
	guidetest.Start(t, cli, "game-2", after.Serve)
	conn, err := after.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1", "game-2")
	guidetest.Stays(affinity.Require(t.Context(), old.Addr), t, client, "game-1")
	guidetest.Stays(affinity.Require(t.Context(), "game-2"), t, client, "game-2")
	old.Stop()
	guidetest.Sees(t, client, "game-2")
}

// Its value is JSON, so clients are the first to be changed.
func TestAnOldClientCannotReadNewServers(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	ours := guidetest.Start(t, cli, "game-2", after.Serve)
	var addrs []string
	guidetest.Soon(t, func() bool {
		var err error
		addrs, err = before.Addresses(t.Context(), cli)
		return err == nil && len(addrs) == 1
	}, "there is a value")
	require.NotEqual(t, ours.Addr, addrs[0])
}

func TestADeletedKeyIsBackAtOnce(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	guidetest.Start(t, cli, "game-2", after.Serve)
	conn, err := after.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-2")
	resp, err := cli.Delete(t.Context(), "/naming/game/", clientv3.WithPrefix())
	require.NoError(t, err)
	require.EqualValues(t, 1, resp.Deleted)
	guidetest.Soon(t, func() bool {
		resp, err := cli.Get(t.Context(), "/naming/game/game-2")
		return err == nil && resp.Count == 1
	}, "the record is back")
}

func TestAServerMayBeRegisteredBothWaysMeanwhile(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	guidetest.Start(t, cli, "game-1", after.Serve)
	ours := guidetest.Start(t, cli, "game-2", after.Serve)
	go before.Register(t.Context(), cli, "/naming/game/"+ours.Addr, ours.Addr)
	guidetest.Soon(t, func() bool {
		addrs, err := before.Addresses(t.Context(), cli)
		return err == nil && len(addrs) == 3 && slices.Contains(addrs, ours.Addr)
	}, "old clients can read it")

	list, err := registry.List(t.Context(), cli, "/naming/game", registry.WithPlainAddresses())
	require.NoError(t, err)
	require.Len(t, list, 2, "to new ones it is one server")
	conn, err := after.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1", "game-2")
	guidetest.Stays(affinity.Require(t.Context(), "game-2"), t, client, "game-2")
}
