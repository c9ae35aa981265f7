package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync/atomic"

	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/stats"

	"github.com/homing-grpc/homing/affinity"
)

type game struct {
	testpb.UnimplementedTestServiceServer
}

func (game) EmptyCall(context.Context, *testpb.Empty) (*testpb.Empty, error) {
	return &testpb.Empty{}, nil
}

// conns counts connections.
type conns struct {
	stats.Handler
	n atomic.Int64
}

func (*conns) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (*conns) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (*conns) HandleRPC(context.Context, stats.RPCStats)                         {}

func (c *conns) HandleConn(_ context.Context, s stats.ConnStats) {
	switch s.(type) {
	case *stats.ConnBegin:
		c.n.Add(1)
	case *stats.ConnEnd:
		c.n.Add(-1)
	}
}

// serve is the server's process: it says its port, and for each line in what it uses.
func serve(in io.Reader, out io.Writer) {
	lis, err := net.Listen("tcp4", ":0")
	if err != nil {
		fmt.Fprintln(os.Stderr, "mesh:", err)
		os.Exit(1)
	}
	c := new(conns)
	srv := grpc.NewServer(append(affinity.ServerOptions(), grpc.StatsHandler(c))...)
	testpb.RegisterTestServiceServer(srv, game{})
	go srv.Serve(lis)
	fmt.Fprintln(out, lis.Addr().(*net.TCPAddr).Port)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var u usage
		if lines.Text() == "all" {
			u = used()
		}
		u.Conns = int(c.n.Load())
		json.NewEncoder(out).Encode(u)
	}
	srv.Stop()
}

// server is that process, seen from outside.
type server struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	port int
}

func startServer() (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &server{cmd: exec.Command(self, "-serve")}
	s.cmd.Stderr = os.Stderr
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	_, err = fmt.Fscanln(s.out, &s.port)
	return s, err
}

// ask asks for "conns" or for "all" that the server uses.
func (s *server) ask(what string) (u usage, err error) {
	if _, err = fmt.Fprintln(s.in, what); err != nil {
		return u, err
	}
	line, err := s.out.ReadBytes('\n')
	if err != nil {
		return u, err
	}
	return u, json.Unmarshal(line, &u)
}

func (s *server) stop() {
	s.in.Close()
	s.cmd.Wait()
}
