package main

import (
	"context"
	"errors"
	"net"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// world is two servers and their client.
type world struct {
	ctx       context.Context
	cli       *clientv3.Client
	telemetry grpc.DialOption

	servers []*server
	conn    *grpc.ClientConn
	game    testpb.TestServiceClient
}

type server struct {
	testpb.UnimplementedTestServiceServer
	grpc *grpc.Server
	reg  *registry.Registration
	back chan struct{} // has a token when the registration was lost and is back
}

func (*server) EmptyCall(context.Context, *testpb.Empty) (*testpb.Empty, error) {
	return &testpb.Empty{}, nil
}

func (w *world) start(id string) (*server, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &server{grpc: grpc.NewServer(affinity.ServerOptions(affinity.WithServerID(id))...), back: make(chan struct{}, 1)}
	testpb.RegisterTestServiceServer(s.grpc, s)
	go s.grpc.Serve(lis)
	w.servers = append(w.servers, s)
	lost := false
	// A registration has no channel, so it is given the plugin by itself.
	s.reg, err = registry.Register(w.ctx, w.cli, "game", lis.Addr().String(), endpointsmeta.Meta{ID: id},
		registry.WithMetrics(w.telemetry),
		registry.WithNotify(func(state registry.State) {
			if state == registry.Registered && lost {
				select {
				case s.back <- struct{}{}:
				default: // nobody waits for it
				}
			}
			lost = state == registry.Lost
		}))
	return s, err
}

func (s *server) waitUntilBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("game-1 does not come back"))
	defer cancel()
	select {
	case <-s.back:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (w *world) dial() error {
	builder, err := registry.NewBuilder(w.cli)
	if err != nil {
		return err
	}
	w.conn, err = grpc.NewClient("etcd:///game", append(affinity.DialOptions(),
		w.telemetry, // that is all
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(stickybalancer.Config{ReconnectWindow: 300 * time.Millisecond}.ServiceConfig()),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	w.game = testpb.NewTestServiceClient(w.conn)
	return err
}

func (w *world) call(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := w.game.EmptyCall(ctx, &testpb.Empty{}, grpc.WaitForReady(true))
	return err
}

// play makes calls of all kinds, and lets things go wrong.
func (w *world) play() error {
	game1, err := w.start("game-1")
	if err != nil {
		return err
	}
	game2, err := w.start("game-2")
	if err != nil {
		return err
	}
	if err := w.dial(); err != nil {
		return err
	}

	session := affinity.NewSession("player-7")
	err = errors.Join(
		w.call(affinity.Require(w.ctx, "game-1")),
		w.call(affinity.Require(w.ctx, "game-2")), // both are READY from here on
		w.call(w.ctx),
		w.call(w.ctx),
		w.call(affinity.WithKey(w.ctx, "room-1")),
		w.call(session.Context(affinity.With(w.ctx, "game-2"))),
	)
	if err != nil {
		return err
	}

	// Somebody deletes a record. The server puts it back.
	if _, err := w.cli.Delete(w.ctx, "game/game-1"); err != nil {
		return err
	}
	if err := game1.waitUntilBack(w.ctx); err != nil {
		return err
	}

	// A session finds a home on game-2, which dies: its next call is held for the window,
	// and then goes elsewhere.
	lives := affinity.NewSession("")
	for lives.ID(w.conn.CanonicalTarget()) != "game-2" {
		lives.Forget(w.conn.CanonicalTarget())
		if err := w.call(lives.Context(w.ctx)); err != nil {
			return err
		}
	}
	game2.grpc.Stop()
	err = w.call(lives.Context(w.ctx))
	if status.Code(err) == codes.Unavailable { // it was there already, and was cut
		err = w.call(lives.Context(w.ctx))
	}
	return err
}

func (w *world) close() {
	if w.conn != nil {
		w.conn.Close()
	}
	for _, s := range w.servers {
		s.grpc.Stop()
		if s.reg != nil {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_ = s.reg.Close(ctx) // its lease ends anyway
			cancel()
		}
	}
}
