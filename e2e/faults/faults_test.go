package faults

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// TestFaults plays the short form of the matrix.
func TestFaults(t *testing.T) {
	for _, row := range Rows(true) {
		t.Run(row.Group+": "+row.Name, func(t *testing.T) {
			r, err := Run(row)
			require.NoError(t, err)
			Print(t.Output(), []Result{r})
			require.Empty(t, r.Wrong)
		})
	}
}
