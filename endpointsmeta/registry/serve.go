package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"github.com/homing-grpc/homing/endpointsmeta"
)

// drainNotice is how long a draining record stands at least, so that every client
// has read the goodbye when the record goes.
const drainNotice = 500 * time.Millisecond

// lastCalls is how much of a drain timeout is for the calls that are under way when the
// record goes. Sessions and calls by id stay with a server that drains, and clients of other
// code do not know that it does: under enough of them it is never without a call, and those
// of its last moment would be cut.
func lastCalls(drainTimeout time.Duration) time.Duration {
	return min(drainTimeout/4, 5*time.Second)
}

// Calls counts the calls that a server has under way. Install it with
// grpc.StatsHandler and hand it to [Serve] by [WithCalls]. The zero value is ready. It is
// safe for concurrent use.
type Calls struct{ n atomic.Int64 }

// UnderWay returns how many calls, streams included, have begun and not ended. The streams
// by which gRPC's clients watch a server's health and load are not among them: they last
// as long as their connections.
func (c *Calls) UnderWay() int { return int(c.n.Load()) }

type uncountedKey struct{}

// TagRPC implements [stats.Handler].
func (c *Calls) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	switch info.FullMethodName {
	case "/grpc.health.v1.Health/Watch", "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics":
		return context.WithValue(ctx, uncountedKey{}, true)
	}
	return ctx
}

// HandleRPC implements [stats.Handler].
func (c *Calls) HandleRPC(ctx context.Context, s stats.RPCStats) {
	switch s.(type) {
	case *stats.Begin, *stats.End:
		if ctx.Value(uncountedKey{}) != nil {
			return
		}
	}
	switch s.(type) {
	case *stats.Begin:
		c.n.Add(1)
	case *stats.End:
		c.n.Add(-1)
	}
}

// TagConn implements [stats.Handler].
func (c *Calls) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements [stats.Handler].
func (c *Calls) HandleConn(context.Context, stats.ConnStats) {}

type serving struct {
	addr         string
	drainTimeout time.Duration
	calls        *Calls
	register     []RegisterOption
}

// Serve serves srv on lis, registered under service and m.ID, until ctx ends or srv
// fails. It leaves in order: the record says draining, so that nothing new comes;
// calls under way end (see [WithCalls]); the record is withdrawn, at the latest when a
// quarter of the drain timeout is left, or 5s; the server stops gracefully, and what is
// left of it at the end of the drain timeout is cut. Streams that never end by themselves
// therefore last for all of it.
//
// It returns nil when it has left in order after ctx ended. srv is stopped whenever
// Serve returns.
func Serve(ctx context.Context, cli *clientv3.Client, service string, srv *grpc.Server, lis net.Listener, m endpointsmeta.Meta, opts ...ServeOption) error {
	if srv == nil || lis == nil {
		return errors.New("registry: srv and lis must not be nil")
	}
	s := &serving{drainTimeout: 30 * time.Second}
	var err error
	for _, o := range opts {
		err = cmp.Or(err, o.applyServe(s))
	}
	s.addr = cmp.Or(s.addr, lis.Addr().String())
	if err = cmp.Or(err, checkService(cli, service), checkRecord(s.addr, m)); err != nil {
		srv.Stop()
		lis.Close()
		return err
	}

	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(lis) }()
	// A server that cannot listen must not stay in the registry, nor wait for it.
	rctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		reg *Registration
		err error
	}
	registered := make(chan result, 1)
	go func() {
		reg, err := Register(rctx, cli, service, s.addr, m, s.register...)
		registered <- result{reg, err}
	}()
	var reg *Registration
	select {
	case err = <-failed:
		cancel()
		stopNow(srv)
		err = fmt.Errorf("registry: serve: %w", cmp.Or(err, grpc.ErrServerStopped))
		if r := <-registered; r.reg != nil {
			err = errors.Join(err, closeNow(ctx, r.reg))
		}
		return err
	case r := <-registered:
		if r.err != nil {
			told := ctx.Err() != nil && errors.Is(r.err, ctx.Err()) // to leave, before it came
			// Its record may have been seen for a moment, and calls have come.
			sctx, scancel := context.WithTimeout(context.WithoutCancel(ctx), s.drainTimeout)
			stop(sctx, srv)
			scancel()
			wait(failed)
			if told {
				return nil
			}
			return r.err
		}
		reg = r.reg
	}

	select {
	case err = <-failed:
		stopNow(srv)
		return errors.Join(fmt.Errorf("registry: serve: %w", cmp.Or(err, grpc.ErrServerStopped)), closeNow(ctx, reg))
	case <-ctx.Done():
	}
	err = s.leave(context.WithoutCancel(ctx), reg, srv)
	wait(failed)
	return err
}

func closeNow(ctx context.Context, reg *Registration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	return reg.Close(ctx)
}

// leave withdraws and stops the server. An etcd that is away delays it by seconds
// and is no error that anyone could act on: the lease ends by itself.
func (s *serving) leave(ctx context.Context, reg *Registration, srv *grpc.Server) error {
	ctx, cancel := context.WithTimeout(ctx, s.drainTimeout)
	defer cancel()
	s.waitForCalls(ctx, reg)
	if err := closeNow(ctx, reg); err != nil {
		logger.Warningf("%v", err)
	}
	stop(ctx, srv)
	return nil
}

// waitForCalls says that the server drains, and waits until no call is under way, or only
// the last calls' time is left.
func (s *serving) waitForCalls(ctx context.Context, reg *Registration) {
	ctx, cancel := context.WithTimeout(ctx, s.drainTimeout-lastCalls(s.drainTimeout))
	defer cancel()
	dctx, dcancel := context.WithTimeout(ctx, requestTimeout)
	defer dcancel()
	if reg.Drain(dctx) != nil || !sleep(ctx, drainNotice) {
		return
	}
	for s.calls != nil && s.calls.UnderWay() > 0 && sleep(ctx, 20*time.Millisecond) {
	}
}

// stop lets calls end, and cuts what is left of them when ctx ends.
func stop(ctx context.Context, srv *grpc.Server) {
	stopped := make(chan struct{})
	go func() {
		srv.GracefulStop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-ctx.Done():
		// A handler that does not heed its context is left behind: GracefulStop, and
		// Stop under grpc.WaitForHandlers, would wait for it.
		stopNow(srv)
	}
}

func stopNow(srv *grpc.Server) {
	done := make(chan struct{})
	go func() {
		srv.Stop()
		close(done)
	}()
	wait(done)
}

// wait waits for what is about to happen, but not for ever.
func wait[T any](done <-chan T) {
	select {
	case <-done:
	case <-time.After(time.Second):
	}
}
