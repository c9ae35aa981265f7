package faults

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/grpclog"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

const (
	service = "game"
	ttl     = 2 * time.Second
)

// gameServer answers calls with its id and the number of its process.
type gameServer struct {
	testpb.UnimplementedTestServiceServer
	id string
	n  atomic.Int64
}

func (s *gameServer) UnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	s.n.Add(1)
	return &testpb.SimpleResponse{Hostname: s.id, Username: strconv.Itoa(os.Getpid())}, nil
}

func (s *gameServer) FullDuplexCall(stream testpb.TestService_FullDuplexCallServer) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		if err := stream.Send(&testpb.StreamingOutputCallResponse{}); err != nil {
			return err
		}
	}
}

// serverMain is a game server as a process. SIGTERM makes it drain and leave.
func serverMain() {
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, os.Stdout, io.Discard))
	if err := serve(); err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
}

func serve() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cli, err := connect(strings.Split(os.Getenv("ETCD"), ","), true)
	if err != nil {
		return err
	}
	defer cli.Close()
	lis, err := net.Listen("tcp", os.Getenv("LISTEN"))
	if err != nil {
		return err
	}
	fmt.Println("listening", lis.Addr())
	id := os.Getenv("ID")
	calls := new(registry.Calls)
	srv := grpc.NewServer(append(affinity.ServerOptions(
		affinity.WithServerID(id), affinity.WithDrain(ctx, 200*time.Millisecond)),
		grpc.StatsHandler(calls))...)
	testpb.RegisterTestServiceServer(srv, &gameServer{id: id})
	addr := os.Getenv("ADVERTISE")
	if addr == "" {
		addr = lis.Addr().String()
	}
	return registry.Serve(ctx, cli, service, srv, lis, endpointsmeta.Meta{ID: id},
		registry.WithCalls(calls), registry.WithTTL(ttl), registry.WithAdvertise(addr),
		registry.WithDrainTimeout(10*time.Second),
		registry.WithNotify(func(s registry.State) { fmt.Println("state", s) }))
}

// server is a game server as its parent sees it. It is reached through a proxy of its
// own.
type server struct {
	id      string
	process *process
	listen  string // its own address
	front   *proxy
}

// start starts a server under id, on a new port if listen is "".
func (w *World) start(id, listen string) (*server, error) {
	s := &server{id: id}
	front, err := newProxy("")
	if err != nil {
		return nil, err
	}
	s.front = front
	if err := w.launch(s, listen); err != nil {
		front.close()
		return nil, err
	}
	w.servers[id] = s
	return s, nil
}

// launch starts the process of s.
func (w *World) launch(s *server, listen string) (err error) {
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	var etcd []string
	w.etcd.each(func(m *member) { etcd = append(etcd, m.back.addr) })
	s.process, err = spawn("server", []string{
		"ID=" + s.id, "LISTEN=" + listen, "ADVERTISE=" + s.front.addr, "ETCD=" + strings.Join(etcd, ","),
	})
	if err != nil {
		return err
	}
	if s.listen, err = s.process.line("listening ", 10*time.Second); err != nil {
		return err
	}
	s.front.mu.Lock()
	s.front.target = s.listen
	s.front.mu.Unlock()
	return nil
}

// kill is kill -9.
func (s *server) kill() {
	s.process.kill()
	s.front.cut(true)
}

// leave asks the server to drain and leave, and waits for it.
func (s *server) leave() error {
	s.process.signal(syscall.SIGTERM)
	select {
	case <-s.process.done:
		return nil
	case <-time.After(15 * time.Second):
		return fmt.Errorf("%s does not leave", s.id)
	}
}

func (s *server) close() {
	s.process.signal(syscall.SIGCONT)
	s.process.kill()
	s.front.close()
}
