package registry

import (
	"context"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

const (
	authTimeout = 30 * time.Second // of a request for a token
	tokenFresh  = time.Second      // since etcd gave it
)

// ShareToken returns an option for the DialOptions of a [clientv3.Config] with a Username
// and a Password: all in the client that ask for a token at one time get the same. It
// changes nothing else.
//
// Without it, each stream that etcd's client opens, and each request whose token etcd does
// not know, shows etcd the password anew, and each check costs etcd up to a tenth of a
// second of CPU, also if the client has given up meanwhile. After etcd's restart a fleet has
// it check for so long that leases end and requests are given up, and begin anew. With it,
// each client has its password checked once, by a request of its own, whatever becomes of
// those that wait for it; by another one if there is no answer in 30 seconds. A token that
// came less than a second ago serves who asks after that, also if etcd takes it no more: a
// request just after a change of etcd's users may have to try for so long.
//
// The option may serve several clients, which share nothing, and is safe for concurrent use.
//
// [clientv3.Config]: https://pkg.go.dev/go.etcd.io/etcd/client/v3#Config
func ShareToken() grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(new(tokens).intercept)
}

// tokens are those that clients ask for now, or have just got.
type tokens struct {
	mu  sync.Mutex // nothing is called under it
	all map[tokenUser]*token
}

type tokenUser struct {
	conn           *grpc.ClientConn
	name, password string
}

// token is one that etcd was asked for.
type token struct {
	done chan struct{} // is closed when what follows is there
	resp pb.AuthenticateResponse
	err  error
	late bool // there was no answer in time
}

func (t *tokens) intercept(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ask, is := req.(*pb.AuthenticateRequest)
	answer, also := reply.(*pb.AuthenticateResponse)
	if !is || !also {
		return invoker(ctx, method, req, reply, conn, opts...)
	}
	user := tokenUser{conn, ask.GetName(), ask.GetPassword()}
	for {
		got := t.ask(ctx, user, func(ctx context.Context, resp *pb.AuthenticateResponse) error {
			// Without the options of this call: they may have it write to what is the caller's.
			return invoker(ctx, method, ask, resp, conn, grpc.WaitForReady(true))
		})
		select {
		case <-got.done:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
		switch {
		case got.late: // which is no answer
		case got.err != nil:
			return got.err
		default:
			answer.Header, answer.Token = got.resp.GetHeader(), got.resp.GetToken()
			return nil
		}
	}
}

// ask returns the token that etcd is asked for, or was just now. If there is none, it asks,
// with the values of ctx.
func (t *tokens) ask(ctx context.Context, user tokenUser, etcd func(context.Context, *pb.AuthenticateResponse) error) *token {
	t.mu.Lock()
	defer t.mu.Unlock()
	if got := t.all[user]; got != nil {
		return got
	}
	got := &token{done: make(chan struct{})}
	if t.all == nil {
		t.all = make(map[tokenUser]*token)
	}
	t.all[user] = got
	forget := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.all, user)
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), authTimeout)
		defer cancel()
		got.err = etcd(ctx, &got.resp)
		got.late = got.err != nil && ctx.Err() != nil
		if got.err != nil {
			forget()
		} else {
			time.AfterFunc(tokenFresh, forget)
		}
		close(got.done)
	}()
	return got
}
