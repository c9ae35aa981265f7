package main

import (
	"bytes"
	"flag"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestFlagsAreReadAndASeedIsMadeUp(t *testing.T) {
	o, err := parse(strings.Fields("-seed 42 -duration 5m -servers 5 -etcd 3"), io.Discard)
	require.NoError(t, err)
	require.EqualValues(t, 42, o.Seed)
	require.Equal(t, 5*time.Minute, o.Duration)
	require.Equal(t, 5, o.Servers)
	require.Equal(t, 3, o.Members)
	first, err := parse(nil, io.Discard)
	require.NoError(t, err)
	second, err := parse(nil, io.Discard)
	require.NoError(t, err)
	require.NotEqual(t, first.Seed, second.Seed)
}

func TestWrongFlagsAreRefusedInOneLine(t *testing.T) {
	for _, args := range []string{
		"-what", "-seed x", "-seed -1", "-duration 5", "-duration 1s", "-duration 25h",
		"-servers 2", "-servers 9", "-etcd 2", "5m",
	} {
		_, err := parse(strings.Fields(args), io.Discard)
		require.Error(t, err, args)
		require.NotContains(t, err.Error(), "\n", args)
	}
}

func TestHelpIsPrinted(t *testing.T) {
	var help bytes.Buffer
	_, err := parse([]string{"-h"}, &help)
	require.ErrorIs(t, err, flag.ErrHelp)
	require.Contains(t, help.String(), "-duration")
}
