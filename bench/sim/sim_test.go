package sim

import (
	"testing"

	"github.com/homing-grpc/homing/stickybalancer"
)

// TestNothingMovesWithoutNeed plays all events to a small fleet, once where each client
// connects to each server, and once where it connects to those that it calls.
func TestNothingMovesWithoutNeed(t *testing.T) {
	for name, policy := range map[string]stickybalancer.Config{
		"EAGER":               {},
		"LAZY, with a subset": {Connect: stickybalancer.ConnectLazy, SubsetSize: 5},
	} {
		t.Run(name, func(t *testing.T) {
			r := Run(t, Config{Servers: 30, Clients: 30, Keys: 10_000, Sampled: 3, SlotStep: 128, Policy: policy, Log: t.Output()})
			if len(r.Rows) != len(events) {
				t.Fatalf("%d rows of %d", len(r.Rows), len(events))
			}
			for _, row := range r.Rows {
				switch row.Event {
				case "rolling restart":
					if row.Keys.Moved+row.Sessions.Moved > 0 {
						t.Errorf("a restart in the window moved %d keys and %d sessions", row.Keys.Moved, row.Sessions.Moved)
					}
				case "half as many join", "it is back":
					if row.Keys.Moved == 0 || row.Sessions.Moved > 0 {
						t.Errorf("%s: %d keys and %d sessions moved", row.Event, row.Keys.Moved, row.Sessions.Moved)
					}
				default:
					if row.Keys.Moved == 0 || row.Sessions.Moved == 0 {
						t.Errorf("%s moved %d keys and %d sessions: it proves nothing", row.Event, row.Keys.Moved, row.Sessions.Moved)
					}
				}
			}
		})
	}
}

func TestAMoveWithoutNeedIsCounted(t *testing.T) {
	servers := []*server{{up: true}, {up: true}, {}}
	homes := func(at int32) []int32 {
		h := make([]int32, slotCount)
		for i := range h {
			h[i] = at
		}
		return h
	}
	for name, tc := range map[string]struct {
		before, now         int32
		homeBefore, homeNow int32
		keys, sessions      Moves
	}{
		"stays":            {0, 0, 0, 0, Moves{}, Moves{}},
		"moves in vain":    {0, 1, 0, 0, Moves{1, 0, 1}, Moves{1, 0, 1}},
		"has lost its own": {2, 1, 2, 1, Moves{1, 1, 0}, Moves{1, 1, 0}},
		"goes elsewhere":   {2, 0, 2, 1, Moves{1, 1, 1}, Moves{1, 1, 1}},
		"goes nowhere":     {2, nowhere, 2, 1, Moves{1, 1, 1}, Moves{1, 1, 1}},
		"has a new home":   {0, 1, 0, 1, Moves{1, 1, 0}, Moves{1, 0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			before, now := places{[]int32{tc.before}, []int32{tc.before}}, places{[]int32{tc.now}, []int32{tc.now}}
			if got := keyMoves(before, now, homes(tc.homeBefore), homes(tc.homeNow)); got != tc.keys {
				t.Errorf("keys: got %+v, want %+v", got, tc.keys)
			}
			if got := sessionMoves(before, now, homes(tc.homeNow), servers); got != tc.sessions {
				t.Errorf("sessions: got %+v, want %+v", got, tc.sessions)
			}
		})
	}
}
