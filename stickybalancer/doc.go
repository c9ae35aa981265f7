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
// # Metrics
//
// The policy records these by gRPC's experimental/stats (gRFC A79), so that gRPC's
// OpenTelemetry plugin exports them beside "grpc.lb.*". All are on by default, and have
// the label grpc.target; those by reason have homing.reason, too:
//
//	homing.lb.custom_round_robin.picks               {pick}      picks of a server, by reason
//	homing.lb.custom_round_robin.queue_duration      s           time for which an attempt was held, by reason
//	homing.lb.custom_round_robin.rehomed_sessions    {session}   sessions that moved, by reason
//	homing.lb.custom_round_robin.known_endpoints     {endpoint}
//	homing.lb.custom_round_robin.ready_endpoints     {endpoint}
//	homing.lb.custom_round_robin.draining_endpoints  {endpoint}
//	homing.lb.custom_round_robin.kept_endpoints      {endpoint}  lost by the list, and connected
//
// The reasons of picks are the Why constants of package affinity, so calls that a full
// home passed on are those by "spilled"; those of sessions are its Reason ones. An attempt
// whose connection broke before it was sent is picked for again, and each pick counts, as
// in gRFC A78: the attempts are in gRPC's own grpc.client.attempt.started.
//
// A held attempt that ended before there was a server for it has the reason "none", and so
// has one that a policy of another name sent in the end, where a parent has several. Under
// such a parent an attempt is held until any custom_round_robin of the channel sends it.
// When the last one closes, what it held is not recorded; the next counts anew. The time
// for which a wait-for-ready call waits on after its window has ended counts only if the
// policy had held it before; and if it ends in vain, only if a server has changed
// meanwhile.
//
// Picks and sessions are counted in memory, and recorded whenever a gauge of these is
// collected, and when the channel goes idle or closes. So one of the gauges has to be
// on. Where nobody records, a pick counts nothing. Gauges of several channels of one
// target that are recorded are summed up, and each recorder gets the sum: gRPC does not
// tell which channels have a recorder in common. A session's move is not counted when
// behind the one address of an endpoint without metadata there is another server.
//
// # Logs
//
// The grpclog component is "stickybalancer". Warnings are for lists that contradict
// themselves, and, once, for calls that name an id where the list has but addresses, as
// that of etcd's own resolver has; what becomes of single servers is at verbosity 2. Calls
// are not logged, nor are their keys.
//
// # Experimental
//
// The policy builds on grpc-go's balancer API, which is experimental.
package stickybalancer
