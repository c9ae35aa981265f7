package bench

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
	"google.golang.org/grpc/metadata"

	"github.com/homing-grpc/homing/affinity"
)

// The recipe is what blog posts do about sticky calls: a map from ids to
// connections on package balancer/base, and round robin for the rest. It knows
// no outage, no draining and no key; an id that is not READY is round robin.
const recipeName = "recipe"

func init() {
	balancer.Register(base.NewBalancerBuilder(recipeName, recipeBuilder{}, base.Config{}))
}

type recipeBuilder struct{}

type recipeKey struct{}

func recipeID(id string) *attributes.Attributes { return attributes.New(recipeKey{}, id) }

func (recipeBuilder) Build(info base.PickerBuildInfo) balancer.Picker {
	if len(info.ReadySCs) == 0 {
		return base.NewErrPicker(balancer.ErrNoSubConnAvailable)
	}
	p := &recipePicker{byID: make(map[string]balancer.SubConn, len(info.ReadySCs))}
	for sc, of := range info.ReadySCs {
		p.byID[of.Address.Attributes.Value(recipeKey{}).(string)] = sc
		p.all = append(p.all, sc)
	}
	return p
}

type recipePicker struct {
	byID map[string]balancer.SubConn
	all  []balancer.SubConn
	next atomic.Uint32
}

// recipeWith is how the recipe passes an id without a header.
func recipeWith(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, recipeKey{}, id)
}

func (p *recipePicker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	id, ok := info.Ctx.Value(recipeKey{}).(string)
	if !ok {
		if md, ok := metadata.FromOutgoingContext(info.Ctx); ok {
			if vs := md.Get(affinity.IDHeader); len(vs) > 0 {
				id = vs[0]
			}
		}
	}
	if sc := p.byID[id]; sc != nil {
		return balancer.PickResult{SubConn: sc}, nil
	}
	return balancer.PickResult{SubConn: p.all[p.next.Add(1)%uint32(len(p.all))]}, nil
}
