package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

func TestWhatIsRemovedAtOnceIsPrintedInOrder(t *testing.T) {
	var out bytes.Buffer
	w := &watching{conn: deadConn(t), service: "game", out: &out, notes: io.Discard, json: true}
	var list []registry.Instance
	for i := range 10 {
		id := fmt.Sprintf("<%d>", i)
		list = append(list, registry.Instance{ID: id, Addr: "h:1", Key: "game/" + id, Meta: endpointsmeta.Meta{ID: id}})
	}
	require.NoError(t, w.take(t.Context(), list))
	out.Reset()
	require.NoError(t, w.take(t.Context(), nil))
	require.Contains(t, out.String(), `"id":"<0>"`)
	lines := json.NewDecoder(&out)
	for i := range 10 {
		var e event
		require.NoError(t, lines.Decode(&e))
		require.Equal(t, "removed", e.Event)
		require.Equal(t, fmt.Sprintf("<%d>", i), e.ID)
	}
}

type deadKV struct{ clientv3.KV }

func (deadKV) Txn(ctx context.Context) clientv3.Txn { return deadTxn{} }

type deadTxn struct{ clientv3.Txn }

func (t deadTxn) Then(...clientv3.Op) clientv3.Txn     { return t }
func (deadTxn) Commit() (*clientv3.TxnResponse, error) { return nil, context.DeadlineExceeded }

func (deadKV) Get(ctx context.Context, _ string, _ ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	return nil, context.DeadlineExceeded
}

// deadConn is one to an etcd that is away.
func deadConn(t *testing.T) *conn {
	c := &conn{Client: clientv3.NewCtxClient(t.Context())}
	c.KV = deadKV{}
	return c
}

// keyWatcher notes the key that is watched.
type keyWatcher struct {
	clientv3.Watcher
	key string
}

func (w *keyWatcher) Watch(_ context.Context, key string, _ ...clientv3.OpOption) clientv3.WatchChan {
	w.key = key
	never := make(chan clientv3.WatchResponse)
	close(never)
	return never
}

// A watch of other keys would not be noticed at once: registry.Watch looks now and then.
func TestANamespaceIsWatchedToo(t *testing.T) {
	w := &keyWatcher{}
	cli := clientv3.NewCtxClient(t.Context())
	cli.Watcher = w
	enter(cli, "prod/")
	for range cli.Watch(t.Context(), "game/a") {
	}
	require.Equal(t, "prod/game/a", w.key)
}
