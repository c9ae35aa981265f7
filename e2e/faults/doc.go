// Package faults plays faults to a small world of real processes, and measures what
// they do to calls: etcd members and game servers run as processes of their own, a
// client with several channels makes calls in this one, and TCP proxies stand between
// them and etcd, and between them and the servers.
//
// A [Row] is one fault, with what it may cost. Command faults runs them all and prints a
// table; the tests of this package run them in a short form.
//
// The processes are this very program, started again: whoever runs rows calls [Main]
// first thing.
package faults
