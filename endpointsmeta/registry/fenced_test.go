package registry

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
)

// flakyLeases renews one lease, and answers as it likes.
type flakyLeases struct {
	pb.UnimplementedLeaseServer
	ttl time.Duration

	mu      sync.Mutex
	r       *rand.Rand
	ends    time.Time // when the lease does
	streams int
}

var errFlaky = errors.New("leader changed")

func (l *flakyLeases) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	l.mu.Lock()
	l.streams++
	l.mu.Unlock()
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.ends = time.Now().Add(l.ttl)
		what, slow := l.r.IntN(10), time.Duration(l.r.Int64N(int64(l.ttl)))
		l.mu.Unlock()
		switch what {
		case 0:
			return errFlaky
		case 1:
			continue // and never answers
		case 2, 3, 4:
			sleep(stream.Context(), slow) // whoever asked may give up meanwhile
		}
		if err := stream.Send(&pb.LeaseKeepAliveResponse{ID: req.ID, TTL: int64(l.ttl / time.Second)}); err != nil {
			return err
		}
	}
}

// Streams that are cut, answers that are late, and answers that never come.
func TestAFenceFallsBeforeTheLeaseEndsWhateverBecomesOfRenewals(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			const ttl = 6 * time.Second
			etcd := &flakyLeases{ttl: ttl, r: rand.New(rand.NewPCG(seed, 0))}
			lis := bufconn.Listen(1 << 16)
			srv := grpc.NewServer()
			pb.RegisterLeaseServer(srv, etcd)
			go srv.Serve(lis)
			defer srv.Stop()
			cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"passthrough:///etcd"}, Logger: zap.NewNop(),
				DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) })}})
			require.NoError(t, err)
			defer cli.Close()

			fence := NewFence(0)
			r := &Registration{cli: cli, ttl: ttl, fence: fence, news: make(chan struct{}), told: newNotifier(nil), started: true}
			defer r.told.close()
			ctx, cancel := context.WithCancel(t.Context())
			defer synctest.Wait()
			defer cancel()
			var seen atomic.Pointer[time.Time]
			go r.renew(ctx, 1, &seen, make(chan struct{}, 1))
			up := 0
			for range 6000 {
				time.Sleep(50 * time.Millisecond)
				etcd.mu.Lock()
				left := time.Until(etcd.ends)
				etcd.mu.Unlock()
				require.LessOrEqual(t, fence.left(), max(left, 0), "seed %d", seed)
				if !fence.Fenced() {
					up++
				}
			}
			require.Greater(t, up, 1000, "it stands for some of the time")
			t.Logf("stood for %d of 6000, by %d streams", up, etcd.streams)
		})
	}
}
