package discovery

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/e2e/guides/discovery/after"
	"github.com/homing-grpc/homing/e2e/guides/discovery/before"
	"github.com/homing-grpc/homing/e2e/guides/discovery/both"
	"github.com/homing-grpc/homing/e2e/guides/guidetest"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

func TestGetServicesKnowsOldAndNewServers(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	old := guidetest.Start(t, cli, "game-1", before.Serve)
	guidetest.Soon(t, func() bool {
		resp, err := cli.Get(t.Context(), "/game/game-1")
		return err == nil && resp.Count == 1
	}, "the old server is registered")
	s := after.NewServiceDiscovery(cli)
	require.NoError(t, s.WatchService(t.Context(), "/game"))
	require.Equal(t, []string{old.Addr}, s.GetServices(), "at once")

	ours := guidetest.Start(t, cli, "game-2", after.Serve)
	want := []string{old.Addr, ours.Addr}
	slices.Sort(want)
	guidetest.Soon(t, func() bool {
		got := s.GetServices()
		slices.Sort(got)
		return slices.Equal(want, got)
	}, "both are known")
	old.Stop()
	guidetest.Soon(t, func() bool { return slices.Equal([]string{ours.Addr}, s.GetServices()) }, "one has left")
}

func TestANewChannelReachesOldAndNewServers(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	old := guidetest.Start(t, cli, "game-1", before.Serve)
	guidetest.Start(t, cli, "game-2", after.Serve)
	conn, err := after.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1", "game-2")
	guidetest.Stays(affinity.Require(t.Context(), old.Addr), t, client, "game-1")
	guidetest.Stays(affinity.Require(t.Context(), "game-2"), t, client, "game-2")
}

// Their values are JSON, so clients are the first to be changed.
func TestOldDiscoveryCannotReadNewServers(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	ours := guidetest.Start(t, cli, "game-2", after.Serve)
	s := before.NewServiceDiscovery(cli)
	require.NoError(t, s.WatchService(t.Context(), "/game/"))
	guidetest.Soon(t, func() bool { return len(s.GetServices()) == 1 }, "there is a value")
	require.NotEqual(t, ours.Addr, s.GetServices()[0])
}

func TestAServerIsReplacedUnderItsKey(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	old := guidetest.Start(t, cli, "game-1", before.Serve)
	conn, err := after.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1")
	old.Stop()
	guidetest.Start(t, cli, "game-1", after.Serve)
	guidetest.Sees(t, client, "game-1")
	guidetest.Stays(affinity.Require(t.Context(), "game-1"), t, client, "game-1")
}

// To old clients all is as before, at any time: while servers go over to both places, while
// new clients come, and on the way back.
func TestServersInBothPlacesServeOldAndNewClients(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	s := before.NewServiceDiscovery(cli)
	require.NoError(t, s.WatchService(t.Context(), "/game/"))
	oldClientsKnow := func(servers ...guidetest.Server) {
		t.Helper()
		var want []string
		for _, server := range servers {
			want = append(want, server.Addr)
		}
		slices.Sort(want)
		guidetest.Soon(t, func() bool { return slices.Equal(want, s.GetServices()) }, "old clients know %v, and nothing else", want)
	}
	one := guidetest.Start(t, cli, "game-1", before.Serve)
	two := guidetest.Start(t, cli, "game-2", before.Serve)
	oldClientsKnow(one, two)

	two.Stop()
	two = guidetest.Start(t, cli, "game-2", both.Serve)
	oldClientsKnow(one, two)
	one.Stop()
	one = guidetest.Start(t, cli, "game-1", both.Serve)
	oldClientsKnow(one, two)

	conn, err := both.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1", "game-2")
	guidetest.Stays(affinity.Require(t.Context(), "game-2"), t, client, "game-2")

	two.Stop()
	two = guidetest.Start(t, cli, "game-2", before.Serve)
	oldClientsKnow(one, two)
	guidetest.Sees(t, client, "game-1")
}

func TestAServerInBothPlacesLeavesTheOldOneFirst(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	s := before.NewServiceDiscovery(cli)
	require.NoError(t, s.WatchService(t.Context(), "/game/"))
	leaves := guidetest.Start(t, cli, "game-1", both.Serve)
	conn, err := both.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1")
	guidetest.Soon(t, func() bool { return len(s.GetServices()) == 1 }, "old clients know it")

	stream, err := testpb.NewTestServiceClient(client).FullDuplexCall(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&testpb.StreamingOutputCallRequest{}))
	_, err = stream.Recv()
	require.NoError(t, err)
	left := make(chan struct{})
	go func() {
		leaves.Stop()
		close(left)
	}()
	guidetest.Soon(t, func() bool { return len(s.GetServices()) == 0 }, "old clients are told")
	list, err := registry.List(t.Context(), cli, "v2/game")
	require.NoError(t, err)
	require.Len(t, list, 1, "it stays for the calls of new ones")
	require.NoError(t, stream.CloseSend())
	<-left
}
