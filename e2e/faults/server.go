package faults

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
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

// gameServer answers calls with its id and the number of its process, and remembers of
// which sessions it took any.
type gameServer struct {
	testpb.UnimplementedTestServiceServer
	id, pid  string
	tells    bool  // its parent listens
	sessions diary // if it does not
}

// accept notes a call that changes the state of a session, before it is answered: what
// is in the pipe outlives a kill -9.
func (s *gameServer) accept(call *testpb.Payload) {
	switch session := string(call.GetBody()); {
	case session == "":
	case s.tells:
		fmt.Println("accepted", s.id, s.pid, session)
	default:
		s.sessions.note(session, time.Now())
	}
}

func (s *gameServer) UnaryCall(_ context.Context, r *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	s.accept(r.GetPayload())
	return &testpb.SimpleResponse{Hostname: s.id, Username: s.pid}, nil
}

func (s *gameServer) FullDuplexCall(stream testpb.TestService_FullDuplexCallServer) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		s.accept(r.GetPayload())
		by := &testpb.Payload{Body: []byte(s.id + " " + s.pid)}
		if err := stream.Send(&testpb.StreamingOutputCallResponse{Payload: by}); err != nil {
			return err
		}
	}
}

// tellHoldings reports what the process holds, whenever SIGUSR1 asks.
func tellHoldings(pid string) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	go func() {
		for range asked {
			n := runtime.NumGoroutine()
			fmt.Println("holds", pid, n, heap())
		}
	}()
}

// listen waits for an address that somebody else's outgoing connection has for now.
func listen(addr string) (lis net.Listener, err error) {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if lis, err = net.Listen("tcp", addr); err == nil {
			break
		}
	}
	return lis, err
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
	lis, err := listen(os.Getenv("LISTEN"))
	if err != nil {
		return err
	}
	fmt.Println("listening", lis.Addr())
	id, pid := os.Getenv("ID"), strconv.Itoa(os.Getpid())
	tellHoldings(pid)
	calls := new(registry.Calls)
	interceptors := []affinity.ServerOption{affinity.WithServerID(id), affinity.WithDrain(ctx, 200*time.Millisecond)}
	options := []registry.ServeOption{
		registry.WithCalls(calls), registry.WithTTL(ttl), registry.WithDrainTimeout(10 * time.Second),
		registry.WithNotify(func(s registry.State) { fmt.Println("state", s) }),
	}
	if keep, err := time.ParseDuration(os.Getenv("FENCE")); err == nil {
		fence := registry.NewFence(keep)
		interceptors = append(interceptors, affinity.WithFence(fence))
		options = append(options, registry.WithFence(fence))
	}
	srv := grpc.NewServer(append(affinity.ServerOptions(interceptors...), grpc.StatsHandler(calls))...)
	testpb.RegisterTestServiceServer(srv, &gameServer{id: id, pid: pid, tells: os.Getenv("TELL") != ""})
	addr := os.Getenv("ADVERTISE")
	if addr == "" {
		addr = lis.Addr().String()
	}
	return registry.Serve(ctx, cli, service, srv, lis, endpointsmeta.Meta{ID: id},
		append(options, registry.WithAdvertise(addr))...)
}

// server is a game server as its parent sees it. It is reached through a proxy of its
// own.
type server struct {
	id      string
	process *process
	listen  string // its own address
	front   *proxy
	etcd    []*proxy // its own way there, behind those of all; nil if it has none
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
	if w.cut && s.etcd == nil {
		if s.etcd, err = newProxies(etcd); err != nil {
			return err
		}
	}
	if s.etcd != nil {
		etcd = addrs(s.etcd)
	}
	s.process, err = spawn("server", []string{
		"ID=" + s.id, "LISTEN=" + listen, "ADVERTISE=" + s.front.addr, "ETCD=" + strings.Join(etcd, ","),
		"FENCE=" + w.fence, "TELL=" + w.tell(),
	}, w.heard)
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

// tell is not empty if servers are to report what they do.
func (w *World) tell() string {
	if w.heard == nil {
		return ""
	}
	return "yes"
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
	for _, p := range s.etcd {
		p.close()
	}
}
