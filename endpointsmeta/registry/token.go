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
// each client has its password checked once, by a request of up to 30 seconds of its own,
// whatever becomes of those that wait for it. A token that came less than a second ago
// serves who asks after that.
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
}

func (t *tokens) intercept(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ask, is := req.(*pb.AuthenticateRequest)
	answer, also := reply.(*pb.AuthenticateResponse)
	if !is || !also {
		return invoker(ctx, method, req, reply, conn, opts...)
	}
	user := tokenUser{conn, ask.GetName(), ask.GetPassword()}
	t.mu.Lock()
	got, asked := t.all[user]
	if !asked {
		got = &token{done: make(chan struct{})}
		if t.all == nil {
			t.all = make(map[tokenUser]*token)
		}
		t.all[user] = got
	}
	t.mu.Unlock()
	if !asked {
		// Without the options of this call: they may have it write to what is the caller's.
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), authTimeout)
			defer cancel()
			got.err = invoker(ctx, method, ask, &got.resp, conn, grpc.WaitForReady(true))
			close(got.done)
			forget := func() {
				t.mu.Lock()
				defer t.mu.Unlock()
				delete(t.all, user)
			}
			if got.err != nil {
				forget()
				return
			}
			time.AfterFunc(tokenFresh, forget)
		}()
	}
	select {
	case <-got.done:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	if got.err != nil {
		return got.err
	}
	answer.Header, answer.Token = got.resp.GetHeader(), got.resp.GetToken()
	return nil
}
