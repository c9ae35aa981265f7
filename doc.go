// Package homing documents the module: gRPC calls that find their way home.
//
// Servers that hold state in memory (game rooms, chats, documents, actors, model
// caches) need a client that comes back to reach the one that holds its state.
// homing does that with a load balancing policy and the etcd that is there anyway:
//
//   - [github.com/homing-grpc/homing/affinity]: what a call wants;
//   - [github.com/homing-grpc/homing/stickybalancer]: the policy that brings it there;
//   - [github.com/homing-grpc/homing/endpointsmeta]: what a server says of itself;
//   - [github.com/homing-grpc/homing/endpointsmeta/registry]: servers in etcd;
//   - [github.com/homing-grpc/homing/cmd/homing]: the operator's command.
//
// There is nothing to import from this package itself. Its examples are the
// snippets of the README.
package homing
