package cachedconn

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/e2e/guides/cachedconn/after"
	"github.com/homing-grpc/homing/e2e/guides/cachedconn/before"
	"github.com/homing-grpc/homing/e2e/guides/guidetest"
)

func TestANewConnReachesOldAndNewServers(t *testing.T) {
	addr, cli := guidetest.Etcd(t)
	old := guidetest.Start(t, cli, "game-1", before.Serve)
	guidetest.Start(t, cli, "game-2", after.Serve)
	t.Cleanup(func() { after.Close("chat", "game") })
	conn, err := after.GetConn("chat", addr+","+addr, "game")
	client := guidetest.Client(t, conn, err)
	again, err := after.GetConn("chat", addr+","+addr, "game")
	require.NoError(t, err)
	require.Same(t, conn, again)
	guidetest.Sees(t, client, "game-1", "game-2")
	guidetest.Stays(affinity.Require(t.Context(), old.Addr), t, client, "game-1")
	guidetest.Stays(affinity.Require(t.Context(), "game-2"), t, client, "game-2")

	session := affinity.NewSession("player-7")
	guidetest.Home(session.Context(t.Context()), t, client)
}

// Their values are JSON, so clients are the first to be changed: an old one takes the
// JSON for an address that does not answer.
func TestAnOldConnReachesOldServersOnly(t *testing.T) {
	addr, cli := guidetest.Etcd(t)
	guidetest.Start(t, cli, "game-1", before.Serve)
	guidetest.Start(t, cli, "game-2", after.Serve)
	t.Cleanup(func() { before.Close("chat", "game") })
	conn, err := before.GetConn("chat", addr, "game")
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1")
	guidetest.Stays(t.Context(), t, client, "game-1")
}
