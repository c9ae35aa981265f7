//go:build race

package sim

// The race detector of Go 1.26 ends the process when timers of one synctest bubble fire at
// the same instant, which those of a fleet do.
func init() { raceEnabled = true }
