//go:build !linux

package sim

import "time"

// Only Linux tells the CPU time of one thread: elsewhere it is left out.
func threadTime() time.Duration { return 0 }

func processTime() time.Duration { return 0 }
