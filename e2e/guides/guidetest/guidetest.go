// Package guidetest is what the tests of the guides share: a real etcd, servers that
// answer with their names, and clients that ask who answers.
package guidetest

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/e2e/internal/etcd"
)

const deadline = 20 * time.Second

// Etcd starts an etcd for the test, and returns its address and a client.
func Etcd(t *testing.T) (string, *clientv3.Client) {
	t.Helper()
	server, err := etcd.Start(t.TempDir(), nil)
	require.NoError(t, err)
	t.Cleanup(server.Close)
	addr := server.Clients[0].Addr().String()
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{addr}, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { cli.Close() })
	return addr, cli
}

func listen(t *testing.T) net.Listener {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return lis
}

// game answers with its name.
type game struct {
	testpb.UnimplementedTestServiceServer
	name string
}

func (g game) UnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	return &testpb.SimpleResponse{Hostname: g.name}, nil
}

// FullDuplexCall answers each message with its name, until there are no more.
func (g game) FullDuplexCall(stream testpb.TestService_FullDuplexCallServer) error {
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.Send(&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: []byte(g.name)}}); err != nil {
			return err
		}
	}
}

// ServeFunc is the server of a guide: it serves and is registered until ctx ends.
type ServeFunc func(ctx context.Context, cli *clientv3.Client, name string, game testpb.TestServiceServer, lis net.Listener) error

// Server is a server that runs.
type Server struct {
	Addr string
	Stop func() // and wait until it has left; the end of the test does it, too
}

// Start runs serve, in which name is the server's.
func Start(t *testing.T, cli *clientv3.Client, name string, serve ServeFunc) Server {
	t.Helper()
	lis := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := serve(ctx, cli, name, game{name: name}, lis); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}()
	stop := func() {
		cancel()
		<-ended
	}
	t.Cleanup(stop)
	return Server{Addr: lis.Addr().String(), Stop: stop}
}

// Client returns a channel of a guide, which is closed with the test.
func Client(t *testing.T, conn *grpc.ClientConn, err error) *grpc.ClientConn {
	t.Helper()
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Who returns the name of the server that answers.
func Who(ctx context.Context, conn *grpc.ClientConn) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := testpb.NewTestServiceClient(conn).UnaryCall(ctx, &testpb.SimpleRequest{})
	return r.GetHostname(), err
}

// Sees waits until calls reach exactly these servers.
func Sees(t *testing.T, conn *grpc.ClientConn, names ...string) {
	t.Helper()
	Soon(t, func() bool {
		got := map[string]bool{}
		for range 3 * len(names) {
			name, err := Who(context.Background(), conn)
			if err != nil {
				return false
			}
			got[name] = true
		}
		for _, name := range names {
			if !got[name] {
				return false
			}
		}
		return len(got) == len(names)
	}, "calls reach %v", names)
}

// Stays requires that all calls with ctx reach the server named name.
func Stays(ctx context.Context, t *testing.T, conn *grpc.ClientConn, name string) {
	t.Helper()
	for range 10 {
		got, err := Who(ctx, conn)
		require.NoError(t, err)
		require.Equal(t, name, got)
	}
}

// Home returns the server that all calls with ctx reach.
func Home(ctx context.Context, t *testing.T, conn *grpc.ClientConn) string {
	t.Helper()
	name, err := Who(ctx, conn)
	require.NoError(t, err)
	Stays(ctx, t, conn, name)
	return name
}

// Soon requires that f becomes true.
func Soon(t *testing.T, f func() bool, what string, args ...any) {
	t.Helper()
	for end := time.Now().Add(deadline); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			require.Failf(t, "not in time", what, args...)
		}
	}
}
