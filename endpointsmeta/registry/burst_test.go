package registry

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestABurstOfChangesIsOneList(t *testing.T) {
	changes := make(chan clientv3.WatchResponse, 2*burst)
	for i := range burst + 10 {
		key := fmt.Sprintf("game/%04d", i)
		changes <- clientv3.WatchResponse{
			Header: &etcdserverpb.ResponseHeader{Revision: int64(i + 1)},
			Events: []*clientv3.Event{{Type: clientv3.EventTypePut, Kv: &mvccpb.KeyValue{
				Key: []byte(key), Value: fmt.Appendf(nil, `{"Addr":"10.0.0.1:%d"}`, i+1), ModRevision: int64(i + 1),
			}}},
		}
	}
	f := newFeed(nil, "game")
	for _, want := range []int{burst, burst + 10} {
		resp, ok := <-changes
		ended, changed := f.take(changes, resp, ok)
		require.NoError(t, ended)
		require.True(t, changed)
		require.Len(t, f.instances(), want)
	}
	require.EqualValues(t, burst+10, f.header.Revision)
}

func TestWhatComesBeforeTheEndOfAWatchCounts(t *testing.T) {
	changes := make(chan clientv3.WatchResponse, 2)
	f := newFeed(nil, "game")
	f.put("game/a", []byte(`{"Op":0,"Addr":"10.0.0.1:80","Metadata":null}`), version{revision: 1})
	changes <- clientv3.WatchResponse{Canceled: true}
	close(changes)
	ended, changed := f.take(changes, clientv3.WatchResponse{Events: []*clientv3.Event{
		{Type: clientv3.EventTypeDelete, Kv: &mvccpb.KeyValue{Key: []byte("game/a")}},
	}}, true)
	require.Error(t, ended)
	require.True(t, changed)
	require.Empty(t, f.instances())
}
