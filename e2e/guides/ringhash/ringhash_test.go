package ringhash

import (
	"context"
	"fmt"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/e2e/guides/guidetest"
	"github.com/homing-grpc/homing/e2e/guides/ringhash/after"
	"github.com/homing-grpc/homing/e2e/guides/ringhash/before"
	servers "github.com/homing-grpc/homing/e2e/guides/roundrobin/after"
	oldservers "github.com/homing-grpc/homing/e2e/guides/roundrobin/before"
)

func TestOldAndNewServersServeOldAndNewClients(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	guidetest.Start(t, cli, "game-1", oldservers.Serve)
	guidetest.Start(t, cli, "game-2", servers.Serve)
	conn, err := before.Dial(cli)
	oldClient := guidetest.Client(t, conn, err)
	conn, err = after.Dial(cli)
	newClient := guidetest.Client(t, conn, err)
	guidetest.Sees(t, oldClient, "game-1", "game-2") // a hash of chance, without the header
	guidetest.Sees(t, newClient, "game-1", "game-2")

	seen := map[string]bool{}
	for i := range 20 {
		seen[guidetest.Home(before.InRoom(t.Context(), fmt.Sprint("room ", i)), t, oldClient)] = true
	}
	require.Len(t, seen, 2)
}

func TestTheHeaderIsTheKey(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	for i := range 3 {
		guidetest.Start(t, cli, fmt.Sprint("game-", i), servers.Serve)
	}
	conn, err := after.Dial(cli)
	one := guidetest.Client(t, conn, err)
	conn, err = after.Dial(cli)
	other := guidetest.Client(t, conn, err)
	guidetest.Sees(t, one, "game-0", "game-1", "game-2")
	guidetest.Sees(t, other, "game-0", "game-1", "game-2")
	for i := range 20 {
		room := fmt.Sprint("room ", i)
		home := guidetest.Home(after.InRoom(t.Context(), room), t, one)
		guidetest.Stays(after.InRoom(t.Context(), room), t, other, home)
		guidetest.Stays(after.InRoomByContext(t.Context(), room), t, one, home)
	}
}

// owner is a game of which all rooms are on one server.
type owner struct {
	testpb.TestServiceServer
	name string
}

func (o owner) UnaryCall(ctx context.Context, r *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if o.name != "game-1" {
		return nil, affinity.Moved("game-1")
	}
	return o.TestServiceServer.UnaryCall(ctx, r)
}

func TestMovedIsFollowedByNewClientsAndAnErrorToOldOnes(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	for i := range 2 {
		guidetest.Start(t, cli, fmt.Sprint("game-", i), func(ctx context.Context, cli *clientv3.Client, name string, game testpb.TestServiceServer, lis net.Listener) error {
			return servers.Serve(ctx, cli, name, owner{game, name}, lis)
		})
	}
	conn, err := after.Dial(cli)
	newClient := guidetest.Client(t, conn, err)
	conn, err = before.Dial(cli)
	oldClient := guidetest.Client(t, conn, err)
	room := 0
	guidetest.Soon(t, func() bool {
		room++
		_, err := guidetest.Who(before.InRoom(t.Context(), fmt.Sprint("room ", room)), oldClient)
		return status.Code(err) == codes.FailedPrecondition
	}, "an old client is refused")
	for i := range 20 {
		guidetest.Stays(after.InRoom(t.Context(), fmt.Sprint("room ", i)), t, newClient, "game-1")
	}
}

func TestARoomWhoseServerStaysDoesNotMove(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	for i := range 2 {
		guidetest.Start(t, cli, fmt.Sprint("game-", i), servers.Serve)
	}
	leaves := guidetest.Start(t, cli, "game-2", servers.Serve)
	conn, err := after.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-0", "game-1", "game-2")
	homes := map[string]string{}
	for i := range 40 {
		room := fmt.Sprint("room ", i)
		homes[room] = guidetest.Home(after.InRoom(t.Context(), room), t, client)
	}
	leaves.Stop()
	guidetest.Sees(t, client, "game-0", "game-1")
	for room, home := range homes {
		if home != "game-2" {
			guidetest.Stays(after.InRoom(t.Context(), room), t, client, home)
		}
	}
}

func TestASessionDoesNotMoveWhenAServerJoins(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	guidetest.Start(t, cli, "game-0", servers.Serve)
	conn, err := after.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-0")
	var sessions []*affinity.Session
	for i := range 20 {
		s := affinity.NewSession(fmt.Sprint("room ", i))
		sessions = append(sessions, s)
		guidetest.Stays(s.Context(t.Context()), t, client, "game-0")
	}
	guidetest.Start(t, cli, "game-1", servers.Serve)
	guidetest.Sees(t, client, "game-0", "game-1")
	for _, s := range sessions {
		guidetest.Stays(s.Context(t.Context()), t, client, "game-0")
	}
}
