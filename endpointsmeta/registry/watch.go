package registry

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
)

// watchTimeout bounds how long it may take until a watch stands.
const watchTimeout = 5 * time.Second

const fewStreams = 4

// A watcher makes watches, one after another.
//
// etcd's client puts all watches whose contexts have the same metadata on one gRPC stream,
// and one that is made on a stream whose connection has died in silence waits there for
// ever. So after a watch that did not stand in time the next asks for another one of a few.
// A stream whose token has ended, as signed ones do, refuses all new watches for as long as
// it has an old one. After that the next asks for one that nobody has.
type watcher struct {
	stream atomic.Uint32 // 0 is that of whoever asks for none
}

func (w *watcher) late() { w.stream.Store(w.stream.Load()%fewStreams + 1) }

func (w *watcher) refused() { w.stream.Store(fewStreams + 1 + rand.Uint32N(1<<30)) }

// watch is cli.Watch, which waits until etcd has answered, but does not wait. A watch that
// does not stand in time ends, like any other, by its channel being closed.
func (w *watcher) watch(ctx context.Context, cli *clientv3.Client, key string, opts ...clientv3.OpOption) <-chan clientv3.WatchResponse {
	ctx = clientv3.WithRequireLeader(ctx)
	if n := w.stream.Load(); n > 0 {
		ctx = metadata.AppendToOutgoingContext(ctx, "homing-watch", strconv.FormatUint(uint64(n), 10))
	}
	ctx, cancel := context.WithCancel(ctx)
	out := make(chan clientv3.WatchResponse)
	go func() {
		defer close(out)
		defer cancel()
		timer := time.AfterFunc(watchTimeout, func() {
			w.late()
			cancel()
		})
		in := cli.Watch(ctx, key, opts...)
		timer.Stop()
		for resp := range in {
			if tokenEnded(resp.Err()) {
				w.refused()
			}
			select {
			case out <- resp:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// tokenEnded reports whether a watch was refused for the token of its stream. etcd's client
// has but the text of why.
func tokenEnded(err error) bool {
	return err != nil && (strings.Contains(err.Error(), rpctypes.ErrorDesc(rpctypes.ErrInvalidAuthToken)) ||
		strings.Contains(err.Error(), rpctypes.ErrorDesc(rpctypes.ErrAuthOldRevision)))
}
