package before

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/resolver"
)

type idKey struct{}

type builder struct{ cli *clientv3.Client }

func (b builder) Scheme() string { return "game" }

func (b builder) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	manager, err := endpoints.NewManager(b.cli, target.Endpoint())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	updates, err := manager.NewWatchChannel(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	go follow(updates, cc)
	return closer(cancel), nil
}

func follow(updates endpoints.WatchChannel, cc resolver.ClientConn) {
	servers := make(map[string]resolver.Address)
	for some := range updates {
		for _, u := range some {
			if u.Op == endpoints.Delete {
				delete(servers, u.Key)
				continue
			}
			id, _ := u.Endpoint.Metadata.(string)
			servers[u.Key] = resolver.Address{
				Addr: u.Endpoint.Addr, Attributes: attributes.New(idKey{}, id),
			}
		}
		var state resolver.State
		for _, a := range servers {
			state.Addresses = append(state.Addresses, a)
		}
		_ = cc.UpdateState(state)
	}
}

type closer context.CancelFunc

func (closer) ResolveNow(resolver.ResolveNowOptions) {}

func (c closer) Close() { c() }
