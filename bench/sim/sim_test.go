package sim

import "testing"

// TestNothingMovesWithoutNeed plays all events to a small fleet.
func TestNothingMovesWithoutNeed(t *testing.T) {
	r := Run(t, Config{Servers: 60, Clients: 60, Keys: 20_000, Sampled: 3, SlotStep: 64, Log: t.Output()})
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
}
