package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

const service = "game"

var bg = context.Background()

// server is a real gRPC server on TCP. It answers with its id.
type server struct {
	testpb.UnimplementedTestServiceServer
	id   string
	addr string
	grpc *grpc.Server
	lis  net.Listener
}

func (s *server) UnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	return &testpb.SimpleResponse{Hostname: s.id}, nil
}

func newServer(t *testing.T, id string, opts ...grpc.ServerOption) *server {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &server{id: id, addr: lis.Addr().String(), lis: lis}
	s.grpc = grpc.NewServer(append(affinity.ServerOptions(affinity.WithServerID(id)), opts...)...)
	testpb.RegisterTestServiceServer(s.grpc, s)
	t.Cleanup(s.grpc.Stop)
	return s
}

func startServer(t *testing.T, id string) *server {
	t.Helper()
	s := newServer(t, id)
	go s.grpc.Serve(s.lis)
	return s
}

func register(t *testing.T, cli *clientv3.Client, s *server, opts ...registry.RegisterOption) *registry.Registration {
	t.Helper()
	return registerMeta(t, cli, s, endpointsmeta.Meta{ID: s.id}, opts...)
}

func registerMeta(t *testing.T, cli *clientv3.Client, s *server, m endpointsmeta.Meta, opts ...registry.RegisterOption) *registry.Registration {
	t.Helper()
	ctx, cancel := context.WithTimeout(bg, 30*time.Second)
	defer cancel()
	reg, err := registry.Register(ctx, cli, service, s.addr, m, opts...)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(bg, 50*time.Millisecond)
		defer cancel()
		reg.Close(ctx)
	})
	return reg
}

// channel is a client of the service.
type channel struct {
	t    *testing.T
	conn *grpc.ClientConn
	rpc  testpb.TestServiceClient
}

func newChannel(t *testing.T, cli *clientv3.Client, cfg stickybalancer.Config, opts ...grpc.DialOption) *channel {
	t.Helper()
	b, err := registry.NewBuilder(cli, registry.WithProbeInterval(500*time.Millisecond))
	require.NoError(t, err)
	return newChannelWith(t, b, cfg, opts...)
}

func newChannelWith(t *testing.T, b resolver.Builder, cfg stickybalancer.Config, opts ...grpc.DialOption) *channel {
	t.Helper()
	opts = append(append(affinity.DialOptions(), grpc.WithResolvers(b),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(cfg.ServiceConfig())), opts...)
	conn, err := grpc.NewClient(b.Scheme()+":///"+service, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return &channel{t: t, conn: conn, rpc: testpb.NewTestServiceClient(conn)}
}

func (c *channel) call(ctx context.Context, opts ...grpc.CallOption) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := c.rpc.UnaryCall(ctx, &testpb.SimpleRequest{}, opts...)
	return r.GetHostname(), err
}

func (c *channel) reaches(id string, ctx context.Context) {
	c.t.Helper()
	got, err := c.call(ctx)
	require.NoError(c.t, err)
	require.Equal(c.t, id, got)
}

// sees waits until calls without affinity reach exactly these servers.
func (c *channel) sees(ids ...string) {
	c.t.Helper()
	want := map[string]bool{}
	for _, id := range ids {
		want[id] = true
	}
	var got map[string]bool
	deadline := time.Now().Add(15 * time.Second)
	for time.Now().Before(deadline) {
		got = map[string]bool{}
		for range 3 * len(ids) {
			id, err := c.call(bg)
			if err != nil {
				id = err.Error()
			}
			got[id] = true
		}
		if len(got) == len(want) {
			same := true
			for id := range got {
				same = same && want[id]
			}
			if same {
				return
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	require.Equal(c.t, want, got)
}

// FullDuplexCall answers each message with an empty one.
func (s *server) FullDuplexCall(stream testpb.TestService_FullDuplexCallServer) error {
	for {
		if _, err := stream.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := stream.Send(&testpb.StreamingOutputCallResponse{}); err != nil {
			return err
		}
	}
}

// wiped loses the data of an etcd after some writes. It had one server, which has left
// meanwhile. It returns a client, and a channel that knew the server.
func (e *etcd) wiped(t *testing.T, writes int) (*clientv3.Client, *channel) {
	t.Helper()
	cli := e.newClient()
	gone := register(t, cli, startServer(t, "gone"), registry.WithTTL(shortTTL))
	for range writes {
		_, err := cli.Put(bg, "unrelated", "x")
		require.NoError(t, err)
	}
	c := newChannel(t, cli, stickybalancer.Config{AbsentGrace: -1})
	c.sees("gone")
	e.stop()
	ctx, cancel := context.WithTimeout(bg, 10*time.Millisecond)
	defer cancel()
	gone.Close(ctx)
	e.wipe()
	e.start()
	return cli, c
}
