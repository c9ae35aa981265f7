package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

const (
	authenticate = "/etcdserverpb.Auth/Authenticate"
	keepAlive    = "/etcdserverpb.Lease/LeaseKeepAlive"
)

// requests counts calls to etcd, and what is sent in them, by method.
type requests struct {
	mu          sync.Mutex
	calls, sent map[string]int
}

func newRequests() *requests {
	return &requests{calls: make(map[string]int), sent: make(map[string]int)}
}

func (r *requests) of(method string) (calls, sent int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls[method], r.sent[method]
}

type methodKey struct{}

func (*requests) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, methodKey{}, info.FullMethodName)
}

func (r *requests) HandleRPC(ctx context.Context, s stats.RPCStats) {
	method := ctx.Value(methodKey{}).(string)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch s.(type) {
	case *stats.Begin:
		r.calls[method]++
	case *stats.OutPayload:
		r.sent[method]++
	}
}

func (*requests) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (*requests) HandleConn(context.Context, stats.ConnStats) {}

// A fleet of servers, each with a client and a password, before and after a restart of
// etcd, which has forgotten all tokens then. Without the option these are three
// passwords or four of each.
func TestAClientThatSharesItsTokenHasItsPasswordCheckedOnce(t *testing.T) {
	const n = 10
	e, root := etcdWithUsers(t, map[string][]string{"server": {service + "/", "/homing/operator/" + service + "/"}})
	r := newRequests()
	renewed := func() func() bool {
		_, before := r.of(keepAlive)
		return func() bool { _, sent := r.of(keepAlive); return sent >= before+n }
	}
	once := renewed()
	regs := make([]*registry.Registration, n)
	for i := range regs {
		cli, err := clientv3.New(clientv3.Config{Endpoints: []string{e.client.Host}, Logger: zap.NewNop(),
			Username: "server", Password: "pw", DialTimeout: 10 * time.Second,
			DialOptions: []grpc.DialOption{registry.ShareToken(), grpc.WithStatsHandler(r)}})
		require.NoError(t, err)
		t.Cleanup(func() { cli.Close() })
		regs[i], err = registry.Register(bg, cli, service, fmt.Sprintf("127.0.0.1:%d", i+1), endpointsmeta.Meta{ID: fmt.Sprint("game-", i)})
		require.NoError(t, err)
		t.Cleanup(func() { regs[i].Close(bg) })
	}
	within(t, 30*time.Second, once, "as many renewals as there are servers")
	_, first := r.of(authenticate)
	t.Logf("%d passwords of %d clients at first", first, n)
	require.Less(t, first, 2*n)

	e.stop()
	again := renewed()
	e.start()
	within(t, 30*time.Second, again, "as many again")
	soon(t, func() bool { return len(listed(t, root)) == n }, "all are there")
	_, then := r.of(authenticate)
	t.Logf("%d after the restart", then-first)
	require.Less(t, then-first, 2*n)
}

// A stream that is opened shows etcd the password, and renewals are made for ever.
func TestRenewalsBehindAFenceShareAStream(t *testing.T) {
	e, _ := etcdWithUsers(t, map[string][]string{"server": {service + "/", "/homing/operator/" + service + "/"}})
	r := newRequests()
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{e.client.Host}, Logger: zap.NewNop(),
		Username: "server", Password: "pw", DialTimeout: 10 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithStatsHandler(r)}})
	require.NoError(t, err)
	defer cli.Close()
	register(t, cli, startServer(t, "a"), registry.WithTTL(shortTTL), registry.WithFence(registry.NewFence(0)))
	within(t, 30*time.Second, func() bool { _, sent := r.of(keepAlive); return sent >= 6 }, "renewals")
	streams, _ := r.of(keepAlive)
	require.LessOrEqual(t, streams, 2, "one, and one more if etcd was slow")
}
