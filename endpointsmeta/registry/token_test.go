package registry

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// slowAuth is an etcd that takes a second for each password, and gives each token once.
type slowAuth struct {
	asked atomic.Int64
	given atomic.Int64
	err   error
}

func (a *slowAuth) invoke(ctx context.Context, _ string, _, reply any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
	a.asked.Add(1)
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	if a.err != nil {
		return a.err
	}
	reply.(*pb.AuthenticateResponse).Token = string(rune('a' - 1 + a.given.Add(1)))
	return nil
}

// login asks t for a token of that user, and returns it.
func (a *slowAuth) login(ctx context.Context, t *tokens, conn *grpc.ClientConn, name, password string) (string, error) {
	var resp pb.AuthenticateResponse
	err := t.intercept(ctx, "/etcdserverpb.Auth/Authenticate", &pb.AuthenticateRequest{Name: name, Password: password}, &resp, conn, a.invoke)
	return resp.Token, err
}

func TestWhoAsksForATokenAtOneTimeGetsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tokens tokens
		var etcd slowAuth
		conn := new(grpc.ClientConn)
		var wg sync.WaitGroup
		for n := range 10 {
			wg.Go(func() {
				time.Sleep(time.Duration(n) * 190 * time.Millisecond) // some when it has come
				got, err := etcd.login(t.Context(), &tokens, conn, "game", "play")
				if got != "a" || err != nil {
					t.Errorf("got %q, %v", got, err)
				}
			})
		}
		wg.Wait()
		time.Sleep(2 * tokenFresh)
		got, err := etcd.login(t.Context(), &tokens, conn, "game", "play")
		require.NoError(t, err)
		require.Equal(t, "b", got, "etcd may have forgotten the first")
		time.Sleep(2 * tokenFresh)
		tokens.mu.Lock()
		defer tokens.mu.Unlock()
		require.Empty(t, tokens.all)
	})
}

func TestOthersDoNotShareAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tokens tokens
		var etcd slowAuth
		one, other := new(grpc.ClientConn), new(grpc.ClientConn)
		var wg sync.WaitGroup
		for _, who := range []tokenUser{{one, "game", "play"}, {other, "game", "play"}, {one, "chat", "play"}, {one, "game", "guess"}} {
			wg.Go(func() { _, _ = etcd.login(t.Context(), &tokens, who.conn, who.name, who.password) })
		}
		wg.Wait()
		require.EqualValues(t, 4, etcd.asked.Load())
		time.Sleep(2 * tokenFresh)
	})
}

// etcd checks the password all the same; whoever asks next has the benefit.
func TestATokenIsNotGivenUpWithWhoAskedForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tokens tokens
		var etcd slowAuth
		conn := new(grpc.ClientConn)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		began := time.Now()
		_, err := etcd.login(ctx, &tokens, conn, "game", "play")
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.Equal(t, time.Second/2, time.Since(began))
		got, err := etcd.login(t.Context(), &tokens, conn, "game", "play")
		require.NoError(t, err)
		require.Equal(t, "a", got)
		require.Equal(t, time.Second, time.Since(began))
		require.EqualValues(t, 1, etcd.asked.Load())
		time.Sleep(2 * tokenFresh)
	})
}

func TestATokenThatWasRefusedIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tokens tokens
		etcd := slowAuth{err: errors.New("authentication failed")}
		conn := new(grpc.ClientConn)
		for range 2 {
			_, err := etcd.login(t.Context(), &tokens, conn, "game", "typo")
			require.ErrorIs(t, err, etcd.err)
		}
		require.EqualValues(t, 2, etcd.asked.Load())
	})
}

// As without the option: etcd's client ends its watches for good where the time for a token
// is over.
func TestWhoAsksForATokenWaitsForItForAsLongAsHeWants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tokens tokens
		var etcd slowAuth
		conn := new(grpc.ClientConn)
		began := time.Now()
		away := func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, opts ...grpc.CallOption) error {
			if time.Since(began) < time.Hour {
				<-ctx.Done()
				return status.FromContextError(ctx.Err()).Err()
			}
			return etcd.invoke(ctx, method, req, reply, conn, opts...)
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				var resp pb.AuthenticateResponse
				err := tokens.intercept(t.Context(), "/etcdserverpb.Auth/Authenticate", &pb.AuthenticateRequest{Name: "game", Password: "play"}, &resp, conn, away)
				if err != nil || resp.Token != "a" {
					t.Errorf("got %q, %v after %v", resp.Token, err, time.Since(began))
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, etcd.asked.Load())
		time.Sleep(2 * tokenFresh)
	})
}

func TestOtherRequestsPass(t *testing.T) {
	var tokens tokens
	var got pb.RangeResponse
	err := tokens.intercept(t.Context(), "/etcdserverpb.KV/Range", new(pb.RangeRequest), &got, nil,
		func(_ context.Context, _ string, _, reply any, _ *grpc.ClientConn, opts ...grpc.CallOption) error {
			require.Len(t, opts, 1)
			reply.(*pb.RangeResponse).Count = 7
			return nil
		}, grpc.WaitForReady(true))
	require.NoError(t, err)
	require.EqualValues(t, 7, got.Count)
}
