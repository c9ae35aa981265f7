package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/e2e/internal/etcd"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

const (
	service = "game"
	ttl     = 2 * time.Second
)

// startEtcd runs an etcd of one member in this process.
func startEtcd() (endpoint string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "sessions-etcd-")
	if err != nil {
		return "", nil, err
	}
	e, err := etcd.Start(dir, nil)
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", nil, fmt.Errorf("start etcd: %w", err)
	}
	return e.Clients[0].Addr().String(), func() {
		e.Close()
		_ = os.RemoveAll(dir)
	}, nil
}

// fleet is the servers, by id.
type fleet struct {
	etcd    string
	servers map[string]*server
}

// server answers calls with its id. It has an etcd client of its own, as a process has.
type server struct {
	testpb.UnimplementedTestServiceServer
	id     string
	cli    *clientv3.Client
	grpc   *grpc.Server
	reg    *registry.Registration
	served atomic.Int64
}

func (s *server) UnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	s.served.Add(1)
	return &testpb.SimpleResponse{Hostname: s.id}, nil
}

// start starts a server under id, on a new port.
func (f *fleet) start(ctx context.Context, id string) error {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{f.etcd}, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	s := &server{id: id, cli: cli, grpc: grpc.NewServer(affinity.ServerOptions(affinity.WithServerID(id))...)}
	testpb.RegisterTestServiceServer(s.grpc, s)
	go s.grpc.Serve(lis)
	// Whoever starts it knows that the one before is dead.
	s.reg, err = registry.Register(ctx, cli, service, lis.Addr().String(), endpointsmeta.Meta{ID: id},
		registry.WithTTL(ttl), registry.WithTakeover())
	if err != nil {
		return err
	}
	f.servers[id] = s
	return nil
}

// kill ends a server without a word to anybody, as kill -9 does.
func (f *fleet) kill(id string) {
	s := f.servers[id]
	delete(f.servers, id)
	_ = s.cli.Close() // nothing keeps its lease alive
	s.grpc.Stop()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.reg.Close(ended) // only its goroutine: etcd cannot be told
}

func (f *fleet) stop() {
	for id := range f.servers {
		f.kill(id)
	}
}
