package picker

import (
	"testing"

	"github.com/homing-grpc/homing/e2e/guides/guidetest"
	"github.com/homing-grpc/homing/e2e/guides/picker/after"
	"github.com/homing-grpc/homing/e2e/guides/picker/before"
)

func TestANewClientKnowsOldServersByTheirIDs(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	guidetest.Start(t, cli, "game-1", before.Serve)
	guidetest.Start(t, cli, "game-2", before.Serve)
	guidetest.Start(t, cli, "game-3", after.Serve)
	conn, err := after.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1", "game-2", "game-3")
	for _, id := range []string{"game-1", "game-2", "game-3"} {
		guidetest.Stays(after.WithServiceID(t.Context(), id), t, client, id)
	}
}

// The old resolver takes metadata for a string, and ours is an object.
func TestAnOldClientSeesNewServersButNotTheirIDs(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	guidetest.Start(t, cli, "game-1", before.Serve)
	guidetest.Start(t, cli, "game-2", after.Serve)
	conn, err := before.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1", "game-2")
	guidetest.Stays(before.WithServiceID(t.Context(), "game-1"), t, client, "game-1")
	got := map[string]bool{}
	for range 4 {
		name, err := guidetest.Who(before.WithServiceID(t.Context(), "game-2"), client)
		if err != nil {
			t.Fatal(err)
		}
		got[name] = true
	}
	if !got["game-1"] {
		t.Fatalf("the guide says that the id of a new server says nothing to an old client: %v", got)
	}
}

func TestAServerIsReplacedUnderItsID(t *testing.T) {
	_, cli := guidetest.Etcd(t)
	guidetest.Start(t, cli, "game-1", before.Serve)
	old := guidetest.Start(t, cli, "game-2", before.Serve)
	conn, err := after.Dial(cli)
	client := guidetest.Client(t, conn, err)
	guidetest.Sees(t, client, "game-1", "game-2")
	old.Stop()
	guidetest.Start(t, cli, "game-2", after.Serve)
	guidetest.Sees(t, client, "game-1", "game-2")
	guidetest.Stays(after.WithServiceID(t.Context(), "game-2"), t, client, "game-2")
}
