// Package faults plays faults to a small world of real processes, and measures what
// they do to calls: etcd members and game servers run as processes of their own, a
// client with several channels makes calls in this one, and TCP proxies stand between
// them and etcd, and between them and the servers.
//
// A [Row] is one fault, with what it may cost. Command faults runs them all and prints a
// table; the tests of this package run them in a short form.
//
// A [Soak] plays faults at random, drawn from a seed, and checks all the while that
// sessions, calls and memory keep what is promised. Command soak runs it for as long as it
// is told to.
//
// The processes are this very program, started again: whoever runs rows or a soak
// calls [Main] first thing.
package faults
