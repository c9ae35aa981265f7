//go:build race

package stickybalancer

func init() { raceEnabled = true }
