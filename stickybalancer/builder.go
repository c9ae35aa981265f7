package stickybalancer

import (
	"encoding/json"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/serviceconfig"
)

// Name is the name of the policy in a service config.
const Name = "custom_round_robin"

func init() { balancer.Register(builder{}) }

// builder makes one policy for each channel. It holds nothing.
type builder struct{}

func (builder) Name() string { return Name }

func (builder) Build(cc balancer.ClientConn, opts balancer.BuildOptions) balancer.Balancer {
	return newPolicy(cc, opts)
}

// ParseConfig refuses a wrong value by the name of its field. It ignores fields
// that it does not know, as gRPC asks.
func (builder) ParseConfig(js json.RawMessage) (serviceconfig.LoadBalancingConfig, error) {
	c, err := parseConfig(js)
	if err != nil {
		return nil, err
	}
	return c, nil
}
