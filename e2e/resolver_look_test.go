package e2e

import (
	"context"
	"fmt"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/serviceconfig"
	"google.golang.org/grpc/stats"

	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

// wire counts what comes from etcd by unary calls.
type wire struct{ calls, bytes atomic.Int64 }

type unaryKey struct{}

func (*wire) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, unaryKey{}, info.FullMethodName == "/etcdserverpb.KV/Range")
}

func (w *wire) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if in, ok := s.(*stats.InPayload); ok && ctx.Value(unaryKey{}).(bool) {
		w.calls.Add(1)
		w.bytes.Add(int64(in.WireLength))
	}
}

func (*wire) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (*wire) HandleConn(context.Context, stats.ConnStats) {}

// listener is gRPC's side of a resolver.
type listener struct {
	resolver.ClientConn
	size atomic.Int64
}

func (l *listener) UpdateState(s resolver.State) error {
	l.size.Store(int64(len(s.Endpoints)))
	return nil
}

func (*listener) ReportError(error) {}

func (*listener) ParseServiceConfig(string) *serviceconfig.ParseResult { return nil }

// A client of many servers, while nobody writes, and while somebody else does, each for two
// dozen looks, so that each kind is among them.
func TestALookAtManyRecordsReadsFewBytes(t *testing.T) {
	const n, looks = 3000, 24
	e := startEtcd(t)
	direct := e.newClient()
	for i := 0; i < n; i += 100 { // a transaction takes 128
		var puts []clientv3.Op
		for j := i; j < i+100; j++ {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("%s/game-%05d", service, j),
				fmt.Sprintf(`{"Addr":"10.0.%d.%d:7000","Metadata":{"id":"game-%05d"}}`, j>>8, j&255, j)))
		}
		_, err := direct.Txn(bg).Then(puts...).Commit()
		require.NoError(t, err)
	}
	w := new(wire)
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{e.client.Host}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithStatsHandler(w)}})
	require.NoError(t, err)
	defer cli.Close()
	b, err := registry.NewBuilder(cli, registry.WithProbeInterval(100*time.Millisecond))
	require.NoError(t, err)
	cc := new(listener)
	r, err := b.Build(resolver.Target{URL: url.URL{Scheme: b.Scheme(), Path: "/" + service}}, cc, resolver.BuildOptions{})
	require.NoError(t, err)
	defer r.Close()
	soon(t, func() bool { return cc.size.Load() == n }, "the list is there")
	soon(t, func() bool { return w.calls.Load() > 8 }, "all keys were read, for the connection was made")

	calls, bytes := w.calls.Load(), w.bytes.Load()
	soon(t, func() bool { return w.calls.Load() >= calls+looks }, "looks at an etcd at rest")
	calls, bytes = w.calls.Load()-calls, w.bytes.Load()-bytes
	t.Logf("at rest: %d reads, %d bytes", calls, bytes)
	require.Less(t, bytes/calls, int64(100))

	calls, bytes = w.calls.Load(), w.bytes.Load()
	soon(t, func() bool {
		_, err := direct.Put(bg, "unrelated", "x")
		require.NoError(t, err)
		return w.calls.Load() >= calls+2*looks
	}, "looks at a busy etcd")
	calls, bytes = w.calls.Load()-calls, w.bytes.Load()-bytes
	t.Logf("while others write: %d reads, %d bytes", calls, bytes)
	require.Less(t, bytes/calls, int64(100))
}
