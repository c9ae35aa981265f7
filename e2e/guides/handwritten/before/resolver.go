package before

import (
	"context"
	"encoding/json"
	"path"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/resolver"
)

// Dial returns a channel to all servers of the game.
func Dial(cli *clientv3.Client) (*grpc.ClientConn, error) {
	opts := []grpc.DialOption{
		grpc.WithResolvers(builder{cli}),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	}
	return grpc.NewClient("etcd:////game/v1", opts...)
}

type builder struct{ cli *clientv3.Client }

func (builder) Scheme() string { return "etcd" }

func (b builder) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &etcdResolver{
		cc: cc, cancel: cancel,
		prefix: target.Endpoint() + "/", addrs: make(map[string]bool),
	}
	resp, err := b.cli.Get(ctx, r.prefix, clientv3.WithPrefix())
	if err != nil {
		cancel()
		return nil, err
	}
	for _, kv := range resp.Kvs {
		r.add(kv.Value)
	}
	r.tell()
	go r.watch(b.cli.Watch(ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1)))
	return r, nil
}

type etcdResolver struct {
	cc     resolver.ClientConn
	cancel context.CancelFunc
	prefix string
	addrs  map[string]bool
}

func (r *etcdResolver) watch(changes clientv3.WatchChan) {
	for some := range changes {
		for _, e := range some.Events {
			if e.Type == clientv3.EventTypeDelete {
				delete(r.addrs, path.Base(string(e.Kv.Key))) // the value is gone, the key has it
			} else {
				r.add(e.Kv.Value)
			}
		}
		r.tell()
	}
}

func (r *etcdResolver) add(value []byte) {
	var s Server
	if err := json.Unmarshal(value, &s); err == nil {
		r.addrs[s.Addr] = true
	}
}

func (r *etcdResolver) tell() {
	var state resolver.State
	for addr := range r.addrs {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: addr})
	}
	_ = r.cc.UpdateState(state)
}

func (r *etcdResolver) ResolveNow(resolver.ResolveNowOptions) {}

func (r *etcdResolver) Close() { r.cancel() }
