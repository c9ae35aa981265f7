// Package bench compares custom_round_robin with what one would use instead, in
// one run. It holds benchmarks only: see the README.
package bench
