package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/homing-grpc/homing/examples/stateful-game/page"
)

// What the page shows is a game that goes on: the files whose names begin with live.

// runLive shows a game at addr until ctx is done.
func runLive(ctx context.Context, out io.Writer, addr, service string) (int, error) {
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		return exitUsage, fmt.Errorf("-http %s: %w", addr, err)
	}
	defer lis.Close()
	g, err := newLiveGame(ctx, service)
	if err != nil {
		return exitWrong, err
	}
	defer g.end()
	if err := g.begin(); err != nil {
		return exitWrong, err
	}

	host, _, _ := net.SplitHostPort(addr)
	srv := &http.Server{
		Handler:           page.Handler(g.board, g.actions(), host),
		ReadHeaderTimeout: 10 * time.Second,
		// So that the streams of events end when ctx does.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(lis) }()
	fmt.Fprintf(out, "the game is at %s, until Ctrl-C\n", urlOf(lis.Addr()))
	if tcp, ok := lis.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		fmt.Fprintf(out, "whoever reaches port %d of this machine can see it and press its buttons; with -http 127.0.0.1:%[1]d nobody else can\n", tcp.Port)
	}
	select {
	case err := <-ended:
		return exitWrong, err
	case <-ctx.Done():
	}
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := srv.Shutdown(sctx); err != nil {
		err = errors.Join(err, srv.Close())
		return exitWrong, err
	}
	return exitOK, nil
}

// urlOf is where a browser on this machine finds what listens on addr.
func urlOf(addr net.Addr) string {
	host, port, _ := net.SplitHostPort(addr.String())
	if ip := net.ParseIP(host); ip.IsUnspecified() {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, port) + "/"
}
