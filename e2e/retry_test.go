package e2e

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

// merged is a service config with the policy and a policy for calls.
func merged(t *testing.T, callPolicy string) string {
	t.Helper()
	policy, err := stickybalancer.Config{}.MarshalJSON()
	require.NoError(t, err)
	return fmt.Sprintf(`{
		"loadBalancingConfig": [{%q: %s}],
		"methodConfig": [{"name": [{}], %s}]
	}`, stickybalancer.Name, policy, callPolicy)
}

const retryPolicy = `"retryPolicy": {
	"maxAttempts": 4, "initialBackoff": "0.01s", "maxBackoff": "0.1s", "backoffMultiplier": 2,
	"retryableStatusCodes": ["UNAVAILABLE"]}`

func withRetries(t *testing.T) (map[string]*chained, *channel) {
	t.Helper()
	servers, c := chains(t, func(id string) []grpc.ServerOption {
		return affinity.ServerOptions(affinity.WithServerID(id))
	}, append(affinity.DialOptions(), grpc.WithDefaultServiceConfig(merged(t, retryPolicy)))...)
	c.sees("a", "b", "c")
	return servers, c
}

func busy(int) error { return status.Error(codes.Unavailable, "busy") }

func TestARetryOfACallThatBelongsSomewhereGoesToTheSameServer(t *testing.T) {
	servers, c := withRetries(t)
	session := affinity.NewSession("player-7")
	home, err := c.call(session.Context(bg))
	require.NoError(t, err)
	for name, ctx := range map[string]context.Context{
		"session": session.Context(bg),
		"key":     affinity.WithKey(bg, "player-7"),
		"id":      affinity.With(bg, home),
		"require": affinity.Require(bg, home),
	} {
		servers[home].does(func(call int) error {
			if call < 3 {
				return busy(call)
			}
			return nil
		})
		c.reaches(home, ctx)
		require.Equal(t, 3, servers[home].called(), name)
	}
}

func TestRetriesOfACallThatBelongsSomewhereEndThere(t *testing.T) {
	servers, c := withRetries(t)
	servers["b"].does(busy)
	for _, ctx := range []context.Context{affinity.With(bg, "b"), affinity.Require(bg, "b")} {
		before := servers["b"].called()
		_, err := c.call(ctx)
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.ErrorContains(t, err, "busy")
		require.Equal(t, 4, servers["b"].called()-before)
	}
}

func TestARetryOfACallWithoutAffinityGoesToTheNextServer(t *testing.T) {
	servers, c := withRetries(t)
	servers["a"].does(busy)
	servers["b"].does(busy)
	for range 6 {
		c.reaches("c", bg)
	}
}

// grpc-go does not hedge: it passes over hedgingPolicy, and so the call is made once.
func TestAHedgingPolicyIsPassedOver(t *testing.T) {
	servers, c := chains(t, func(id string) []grpc.ServerOption {
		return affinity.ServerOptions(affinity.WithServerID(id))
	}, append(affinity.DialOptions(), grpc.WithDefaultServiceConfig(
		merged(t, `"hedgingPolicy": {"maxAttempts": 3, "hedgingDelay": "0s"}`)))...)
	servers["b"].does(nil)
	for range 5 {
		c.reaches("b", affinity.WithKey(affinity.With(bg, "b"), "player-7"))
	}
	require.Equal(t, 5, servers["b"].called())
}
