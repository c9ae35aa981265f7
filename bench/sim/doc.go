// Package sim plays the membership of a large fleet to a few clients of it, in fake time
// and without a socket, and counts what moves. What it is about is real: the resolver of
// package registry, the custom_round_robin policy behind gRPC's balancer API, and
// sessions. What is played: etcd's memory and watches, and connections, which come up or
// fail as the addresses behind them do.
//
// Time is that of [testing/synctest], for policy and registry have timers of their own.
// That package gives its bubble to tests only, so [Run] takes one; the command is a
// program that is one test.
//
// # What is sampled
//
// Ten thousand policies of ten thousand servers each would take 270 GB. So a few clients
// are whole, each with its own watch, list order, seed and moment of each change. Every
// key is asked of one of them, in turn; and on all of them one key of every slot is asked,
// of which there are 2^18 however many keys there are: the home of a key is the home of
// its slot. All must say what plain rendezvous hashing says, which shares no code with the
// policy (model.go). A client that is not there would say the same, for its homes are
// that function of the list. Traffic and connections of all clients are those of one,
// times clients.
package sim
