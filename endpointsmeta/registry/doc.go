// Package registry registers servers in etcd and resolves them for gRPC, on top
// of etcd's official naming/endpoints and naming/resolver packages: any client of
// those reads what it writes, and it reads what they write.
//
// A server calls [Serve], or [Register] if it wants to do the rest itself:
//
//	err := registry.Serve(ctx, cli, "game", srv, lis, endpointsmeta.Meta{ID: "game-1"})
//
// A client resolves "etcd:///game":
//
//	builder, err := registry.NewBuilder(cli)
//	conn, err := grpc.NewClient("etcd:///game", grpc.WithResolvers(builder),
//		grpc.WithDefaultServiceConfig(stickybalancer.Config{}.ServiceConfig()), …)
//
// # What it adds
//
// The official packages stop at the first fault: a watch that fails is not
// replaced, a lease that is lost is not renewed, a wiped etcd goes unnoticed, and
// metadata never reaches gRPC. Here a registration comes back after whatever took
// it away, and a resolver lists again, keeps the last good list while etcd is
// away, and says so when it has none.
//
// # What the operator says
//
// A record has one writer: the registration, which puts back what somebody else changes.
// So an operator's drain or weight is not written there. It stands under a key of its own,
// without a lease,
//
//	/homing/operator/<service>/<id>    {"draining":true,"weight":2}
//
// which the command homing writes and anybody may, and the registration watches. What it
// publishes is both: the server is draining if it says so itself or its operator does; the
// weight is the operator's if there is one (not 0), else the server's. So neither undoes the
// other, and each lifts only its own. [Registration.State] and [WithNotify] tell of either
// as [Draining], from which an operator can bring a server back.
//
// The operator's word outlives the server, as long as it is not lifted and etcd does not
// lose its data: a server that starts under the id heeds it from its first record on. It
// takes one watch more for each registration, and a small read once in 5/3 of the TTL. A
// server whose etcd user may not read the key goes on without, and warns; if the right is
// taken while it runs, what it heeded stays: who takes a role away did not say that the
// server is to serve again. It asks on, and follows when it may. In the
// metadata of its record, "intent" is the revision of the key that it heeds, and "started"
// is when it registered, by its own clock.
//
// # Metrics and logs
//
// These are recorded by gRPC's experimental/stats (gRFC A79), and are on by default. The
// first two come with the resolver, where the channel has a recorder, such as gRPC's
// OpenTelemetry plugin; the others need [WithMetrics]:
//
//	homing.resolver.etcd.list_staleness     s               since etcd last confirmed the list; grpc.target
//	homing.resolver.etcd.resyncs            {resync}        lists taken anew; grpc.target, homing.reason
//	homing.registry.registrations_lost      {registration}  homing.service, optional homing.server_id
//	homing.registry.registrations_regained  {registration}  the same
//
// While all is well, a list is hardly staler than [WithProbeInterval] has it. It is taken anew
// when a watch ended (homing.reason is watch_ended: compacted, without a leader, or cut),
// and when etcd does not have what the watch has told (data_differs: it was wiped, say).
//
// The grpclog component is "homing-registry". Warnings tell of what was lost and of
// records that are of no use; information of each state of a registration, and of why the
// first one takes its time: its id is held by another server, say.
//
// # The etcd client
//
// Every request made here has a deadline, and the client's connections are asked
// to come back at once when one fails. A flow that is dropped in silence is found
// sooner with clientv3.Config's DialKeepAliveTime and DialKeepAliveTimeout set
// (10 seconds and 3, say; grpc-go takes less than 10 as 10). A fleet of clients with
// passwords wants [ShareToken].
package registry
