// Package stickybalancer is the custom_round_robin load balancing policy: calls
// without affinity are spread round robin, calls with affinity reach the one
// server that holds their state.
//
// Importing the package registers the policy. A service config selects it, and
// the context of a call says where the call belongs:
//
//	import (
//		"github.com/homing-grpc/homing/affinity"
//		"github.com/homing-grpc/homing/stickybalancer"
//	)
//
//	conn, err := grpc.NewClient(target,
//		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()), …)
//	…
//	reply, err := client.Move(affinity.With(ctx, "game-1"), request)
//
// Servers are told apart by the id that their endpoints carry (package
// endpointsmeta); without one, by their address. So any resolver will do. The
// one in package registry brings ids, weights, zones and draining from etcd.
//
// # Where a call goes
//
// A call that names a server goes there, even while that server drains. While
// its connection is down, the call waits for it, at most for reconnectWindow
// since the connection was lost. After that a required call fails with code
// Unavailable, and any other goes to the home of its key, or of the id itself:
// the first in the rendezvous order of the servers that take new work. A server
// that the resolver's list loses while its connection is READY keeps what it has
// for absentGrace.
//
// Everything else is as under gRPC's own round_robin, with weights.
//
// # Experimental
//
// The policy builds on grpc-go's balancer API, which is experimental.
package stickybalancer
