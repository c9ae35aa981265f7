package faults

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestASessionThatWasAtTwoServersOneAfterTheOtherWasNotAtTwoAtOnce(t *testing.T) {
	at := func(first, last time.Duration) entry {
		day := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
		return entry{day.Add(first), day.Add(last)}
	}
	for name, tc := range map[string]struct {
		entries []entry
		want    bool
	}{
		"one":                {[]entry{at(0, time.Hour)}, false},
		"one after another":  {[]entry{at(0, time.Second), at(time.Second, time.Hour)}, false},
		"while at work":      {[]entry{at(time.Second-atWork, time.Hour), at(0, time.Second)}, false},
		"at once":            {[]entry{at(0, time.Second), at(time.Second-2*atWork, time.Hour)}, true},
		"within the other":   {[]entry{at(0, time.Hour), at(time.Second, time.Minute)}, true},
		"the third":          {[]entry{at(0, time.Second), at(time.Hour, 3*time.Hour), at(2*time.Hour, 4*time.Hour)}, true},
		"three in their own": {[]entry{at(0, time.Second), at(time.Minute, time.Hour), at(time.Hour, 2*time.Hour)}, false},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tc.want, overlap(tc.entries)) })
	}
}
