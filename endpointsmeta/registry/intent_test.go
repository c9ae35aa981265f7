package registry

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/internal/records"
)

// oneKV has one word of an operator, "" if there is none.
type oneKV struct {
	clientv3.KV
	word     string
	revision int64
	err      error
}

func (kv *oneKV) Get(context.Context, string, ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if kv.err != nil {
		return nil, kv.err
	}
	resp := &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: kv.revision}}
	if kv.word != "" {
		resp.Kvs = []*mvccpb.KeyValue{{Value: []byte(kv.word), ModRevision: kv.revision}}
	}
	return resp, nil
}

// A wiped etcd counts its revisions from 1 again, so another word may come to have the
// revision of the last.
func TestAnotherWordOfTheSameRevisionIsHeeded(t *testing.T) {
	kv := &oneKV{revision: 57}
	r := &Registration{cli: clientv3.NewCtxClient(t.Context()), service: "game", id: "a", meta: endpointsmeta.Meta{ID: "a", Weight: 3},
		change: make(chan struct{}, 1)}
	r.cli.KV = kv
	for _, tc := range []struct {
		word  string
		want  records.Intent
		write bool
	}{
		{``, records.Intent{}, false},
		{`{"draining":true}`, records.Intent{Draining: true}, true},
		{`{"draining":true,"since":"2026-11-21T10:00:00Z"}`, records.Intent{Draining: true}, false},
		{`{"weight":7}`, records.Intent{Weight: 7}, true},
		{`{"weight":8}`, records.Intent{Weight: 8}, true},
		{`drain!`, records.Intent{}, true},
		{`drain!`, records.Intent{}, false},
	} {
		kv.word = tc.word
		_, err := r.lookForIntent(t.Context())
		require.NoError(t, err)
		require.Equal(t, tc.want.Apply(endpointsmeta.Meta{ID: "a", Weight: 3}), r.Meta(), tc.word)
		require.Len(t, r.change, map[bool]int{true: 1}[tc.write], tc.word)
		select {
		case <-r.change:
		default:
		}
	}
}

// Etcd says so, or whoever stands before it. A server that could register before there were
// operators' words can do so now.
func TestWhoMayNotReadTheOperatorsWordIsTold(t *testing.T) {
	for _, err := range []error{rpctypes.ErrPermissionDenied, status.Error(codes.PermissionDenied, "RBAC: access denied")} {
		r := &Registration{cli: clientv3.NewCtxClient(t.Context()), service: "game", id: "a"}
		r.cli.KV = &oneKV{err: err}
		_, got := r.lookForIntent(t.Context())
		require.ErrorIs(t, got, errMayNot)
	}
}
