package e2e

import (
	"context"
	"flag"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	official "go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/test/bufconn"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

var slow = flag.Bool("slow", false, "benchmarks: also those whose rivals take many seconds")

// BenchmarkBurst is n servers that register at once, each with a put of its own, in a service
// that a channel already watches. It is timed from the first put until a call without affinity
// has reached the server whose put came last. Calls begin when that put is answered, and
// go one after the other.
//
// The servers are one, behind n addresses: a dialer hands out connections in memory. All else
// is real: etcd, the watch, and gRPC's connections. n = 3,000 takes the rival 20 s, so it
// wants the flag -slow:
//
//	go test -run '^$' -bench Burst -benchtime 1x ./e2e/ -slow
func BenchmarkBurst(b *testing.B) {
	subjects := []struct {
		policy  string
		builder func(*clientv3.Client) (resolver.Builder, error)
	}{
		{"round_robin", official.NewBuilder},
		{stickybalancer.Name, func(cli *clientv3.Client) (resolver.Builder, error) { return registry.NewBuilder(cli) }},
	}
	for _, n := range []int{300, 3000} {
		if n > 300 && !*slow {
			continue
		}
		for _, s := range subjects {
			b.Run(fmt.Sprintf("n=%d/policy=%s", n, s.policy), func(b *testing.B) {
				cli, dial := startEtcd(b).newClient(), manyServers(b)
				for round := 0; b.Loop(); round++ {
					b.StopTimer()
					builder, err := s.builder(cli)
					require.NoError(b, err)
					burst(b, cli, fmt.Sprint("burst-", round), n, builder, dial, s.policy)
					b.StartTimer()
				}
			})
		}
	}
}

// burst is one of them. The timer is stopped before and after.
func burst(b *testing.B, cli *clientv3.Client, name string, n int, builder resolver.Builder, dial grpc.DialOption, policy string) {
	ctx, cancel := context.WithTimeout(bg, 5*time.Minute)
	defer cancel()
	m, err := endpoints.NewManager(cli, name)
	require.NoError(b, err)
	put := func(i int) error {
		ep := endpoints.Endpoint{Addr: burstAddr(i), Metadata: endpointsmeta.Meta{ID: fmt.Sprint("game-", i)}}
		return m.AddEndpoint(ctx, fmt.Sprintf("%s/game-%d", name, i), ep)
	}
	conn, err := grpc.NewClient(builder.Scheme()+":///"+name, dial, grpc.WithResolvers(builder),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithReadBufferSize(1<<10), grpc.WithWriteBufferSize(1<<10),
		grpc.WithDefaultServiceConfig(fmt.Sprintf(`{"loadBalancingConfig": [{%q: {}}]}`, policy)))
	require.NoError(b, err)
	defer conn.Close()
	reach := func(i int) error {
		for rpc := testpb.NewTestServiceClient(conn); ; {
			var p peer.Peer
			if _, err := rpc.UnaryCall(ctx, &testpb.SimpleRequest{}, grpc.Peer(&p), grpc.WaitForReady(true)); err != nil {
				return err
			}
			if p.Addr.String() == burstAddr(i) {
				return nil
			}
		}
	}
	require.NoError(b, put(0))
	require.NoError(b, reach(0))

	b.StartTimer()
	const workers = 32
	var puts sync.WaitGroup
	for w := range workers {
		puts.Go(func() {
			for i := 1 + w; i < n; i += workers {
				if err := put(i); err != nil {
					b.Error(err)
				}
			}
		})
	}
	puts.Wait()
	require.NoError(b, put(n))
	require.NoError(b, reach(n))
	b.StopTimer()
}

func burstAddr(i int) string { return fmt.Sprintf("10.0.%d.%d:80", i>>8, i&255) }

// manyServers is a server that is behind every address.
func manyServers(b *testing.B) grpc.DialOption {
	lis := bufconn.Listen(1 << 10)
	srv := grpc.NewServer(grpc.ReadBufferSize(1<<10), grpc.WriteBufferSize(1<<10))
	testpb.RegisterTestServiceServer(srv, &server{})
	go srv.Serve(lis)
	b.Cleanup(srv.Stop)
	return grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := lis.DialContext(ctx)
		if err != nil {
			return nil, err
		}
		return connTo{c, fakeAddr(addr)}, nil
	})
}

// connTo is a connection that says which address was dialled.
type connTo struct {
	net.Conn
	addr fakeAddr
}

func (c connTo) RemoteAddr() net.Addr { return c.addr }

type fakeAddr string

func (fakeAddr) Network() string  { return "memory" }
func (a fakeAddr) String() string { return string(a) }
