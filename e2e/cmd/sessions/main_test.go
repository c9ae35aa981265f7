package main

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSessionsMoveOnlyWhenTheyMust(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := run(ctx, 2000)
	require.NoError(t, err)
	r.print(t.Output())
	require.NoError(t, r.check())
	require.Len(t, r.steps, 4)
}
