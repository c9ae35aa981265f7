package registry

import (
	"context"
	"strconv"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
)

// watchTimeout bounds how long it may take until a watch stands.
const watchTimeout = 5 * time.Second

// A watcherID names the gRPC streams of one that watches. etcd's client puts watches
// whose contexts have the same metadata on one stream, and a watch that is made on one
// whose connection has died in silence waits there for ever. So each has streams of its
// own, and a second attempt does not take the first one's.
type watcherID struct {
	id       uint64
	attempts uint64
}

var watcherIDs atomic.Uint64

func newWatcherID() watcherID { return watcherID{id: watcherIDs.Add(1)} }

// watch is cli.Watch, which waits until etcd has answered, but does not wait. A watch that
// does not stand in time ends, like any other, by its channel being closed.
func (w *watcherID) watch(ctx context.Context, cli *clientv3.Client, key string, opts ...clientv3.OpOption) <-chan clientv3.WatchResponse {
	w.attempts++
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(clientv3.WithRequireLeader(ctx),
		"homing-watch", strconv.FormatUint(w.id, 36)+"."+strconv.FormatUint(w.attempts%4, 10)))
	out := make(chan clientv3.WatchResponse)
	go func() {
		defer close(out)
		defer cancel()
		late := time.AfterFunc(watchTimeout, cancel)
		in := cli.Watch(ctx, key, opts...)
		late.Stop()
		for resp := range in {
			select {
			case out <- resp:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
