package before

import (
	"context"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
	"google.golang.org/grpc/credentials/insecure"
)

// ServiceID is the key of a context value: the id of the server that is wanted.
type ServiceID struct{}

// WithServiceID returns a context for calls to the server with that id.
func WithServiceID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, ServiceID{}, id)
}

// Dial returns a channel to all servers of the game.
func Dial(cli *clientv3.Client) (*grpc.ClientConn, error) {
	opts := []grpc.DialOption{
		grpc.WithResolvers(builder{cli}),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"by_service_id":{}}]}`),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	}
	return grpc.NewClient("game:///game", opts...)
}

func init() {
	balancer.Register(base.NewBalancerBuilder("by_service_id", pickers{}, base.Config{}))
}

type pickers struct{}

func (pickers) Build(info base.PickerBuildInfo) balancer.Picker {
	if len(info.ReadySCs) == 0 {
		return base.NewErrPicker(balancer.ErrNoSubConnAvailable)
	}
	p := &picker{byID: make(map[string]balancer.SubConn)}
	for conn, about := range info.ReadySCs {
		id, _ := about.Address.Attributes.Value(idKey{}).(string)
		p.byID[id] = conn
		p.all = append(p.all, conn)
	}
	return p
}

type picker struct {
	byID map[string]balancer.SubConn
	all  []balancer.SubConn
	next atomic.Uint32
}

func (p *picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	if id, ok := info.Ctx.Value(ServiceID{}).(string); ok {
		if conn := p.byID[id]; conn != nil {
			return balancer.PickResult{SubConn: conn}, nil
		}
	}
	n := p.next.Add(1)
	return balancer.PickResult{SubConn: p.all[int(n)%len(p.all)]}, nil
}
