package roundrobin

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/e2e/guides/guidetest"
	"github.com/homing-grpc/homing/e2e/guides/roundrobin/after"
	"github.com/homing-grpc/homing/e2e/guides/roundrobin/before"
)

func TestOldAndNewServersServeOldAndNewClients(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	oldServer := guidetest.Start(t, cli, "game-1", before.Serve)
	conn, err := before.Dial(cli)
	oldClient := guidetest.Client(t, conn, err)
	conn, err = after.Dial(cli)
	newClient := guidetest.Client(t, conn, err)
	guidetest.Sees(t, oldClient, "game-1")
	guidetest.Sees(t, newClient, "game-1")

	guidetest.Start(t, cli, "game-2", after.Serve)
	guidetest.Sees(t, oldClient, "game-1", "game-2")
	guidetest.Sees(t, newClient, "game-1", "game-2")

	guidetest.Stays(affinity.With(t.Context(), oldServer.Addr), t, newClient, "game-1")
	guidetest.Stays(affinity.With(t.Context(), "game-2"), t, newClient, "game-2")
}

func TestASessionStaysAndMovesWhenItsServerIsReplaced(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	oldServer := guidetest.Start(t, cli, "game-1", before.Serve)
	conn, err := after.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1")
	session := affinity.NewSession("player-7")
	moved := make(chan affinity.Move, 10)
	session.OnMove(func(m affinity.Move) { moved <- m })
	ctx := session.Context(t.Context())
	guidetest.Stays(ctx, t, client, "game-1")

	guidetest.Start(t, cli, "game-2", after.Serve)
	guidetest.Sees(t, client, "game-1", "game-2")
	guidetest.Stays(ctx, t, client, "game-1")

	oldServer.Stop()
	guidetest.Soon(t, func() bool {
		name, err := guidetest.Who(ctx, client)
		return err == nil && name == "game-2"
	}, "the session moves")
	guidetest.Stays(ctx, t, client, "game-2")
	m := <-moved
	require.Equal(t, oldServer.Addr, m.From)
	require.Equal(t, "game-2", m.To)
	require.Empty(t, moved, "once")
}

func TestARestartUnderTheSameIDKeepsCallersByID(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	guidetest.Start(t, cli, "game-1", after.Serve)
	second := guidetest.Start(t, cli, "game-2", after.Serve)
	conn, err := after.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1", "game-2")
	second.Stop()
	guidetest.Sees(t, client, "game-1")
	guidetest.Start(t, cli, "game-2", after.Serve)
	guidetest.Sees(t, client, "game-1", "game-2")
	guidetest.Stays(affinity.Require(t.Context(), "game-2"), t, client, "game-2")
}

// An old server puts its key without a look at what is there, once. So it must not start
// before the new one under its name has left.
func TestAnOldServerThatStartsTooEarlyIsInNobodysList(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	ours := guidetest.Start(t, cli, "game-1", after.Serve)
	guidetest.Start(t, cli, "game-2", after.Serve)
	conn, err := before.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1", "game-2")
	puts := cli.Watch(t.Context(), "game/game-1")
	early := guidetest.Start(t, cli, "game-1", before.Serve)
	for _, addr := range []string{early.Addr, ours.Addr} {
		for said := ""; !strings.Contains(said, addr); {
			change := <-puts
			said = string(change.Events[len(change.Events)-1].Kv.Value)
		}
	}
	ours.Stop()
	guidetest.Sees(t, client, "game-2")
	early.Stop()
	guidetest.Start(t, cli, "game-1", before.Serve)
	guidetest.Sees(t, client, "game-1", "game-2")
}
