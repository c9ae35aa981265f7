//go:build race

package sim

import "runtime"

// The timers of a synctest bubble have one context of the race detector, and Go 1.26 uses it
// on two threads at once: on one that fires what is due, and on one where a goroutine finds a
// timer due or sets it to now. That ends the process. With one thread there is no other; the
// detector misses nothing by it, for it goes by what orders two accesses, not by when they are.
func init() { runtime.GOMAXPROCS(1) }
