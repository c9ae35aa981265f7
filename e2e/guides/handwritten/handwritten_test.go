package handwritten

import (
	"testing"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/e2e/guides/guidetest"
	"github.com/homing-grpc/homing/e2e/guides/handwritten/after"
	"github.com/homing-grpc/homing/e2e/guides/handwritten/before"
)

func TestOldAndNewServersServeOldAndNewClients(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	old := guidetest.Start(t, cli, "game-1", before.Serve)
	guidetest.Start(t, cli, "game-2", after.Serve)
	conn, err := before.Dial(cli)
	guidetest.Sees(t, guidetest.Client(t, conn, err), "game-1", "game-2")
	conn, err = after.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1", "game-2")
	guidetest.Stays(affinity.Require(t.Context(), old.Addr), t, client, "game-1")
	guidetest.Stays(affinity.Require(t.Context(), "game-2"), t, client, "game-2")
}

func TestAnOldServerThatLeavesIsSeenToLeave(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	old := guidetest.Start(t, cli, "game-1", before.Serve)
	guidetest.Start(t, cli, "game-2", after.Serve)
	conn, err := after.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1", "game-2")
	old.Stop()
	guidetest.Sees(t, client, "game-2")
}

func TestAKeyHasOneHomeAmongOldAndNewServers(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	guidetest.Start(t, cli, "game-1", before.Serve)
	guidetest.Start(t, cli, "game-2", after.Serve)
	var home string
	for range 3 {
		conn, err := after.Dial(cli)
		client := guidetest.Client(t, conn, err)
		guidetest.Sees(t, client, "game-1", "game-2")
		got := guidetest.Home(affinity.WithKey(t.Context(), "room 7"), t, client)
		if home != "" && got != home {
			t.Fatalf("one client says %s, another %s", home, got)
		}
		home = got
	}
}
