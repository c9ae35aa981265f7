package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestDemo plays all scenes: nothing moves needlessly, no call fails, and it is
// over soon.
func TestDemo(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var stdout, stderr bytes.Buffer
	started := time.Now()
	code := run(t.Context(), nil, &stdout, &stderr)
	require.Equal(t, exitOK, code, "%s%s", &stdout, &stderr)
	assert.Empty(t, stderr.String())
	assert.Less(t, time.Since(started), 30*time.Second)

	out := stdout.String()
	for _, want := range []string{"\n1. ", "\n2. ", "\n3. ", "\n4. ", "\n5. ", "What moved", "needless: 0", "failed: 0\n", "I start again", "of the 6 who were there, 0 moved"} {
		assert.Contains(t, out, want)
	}
	assert.NotContains(t, out, "WRONG")
	assert.NotContains(t, out, "NEEDLESS")

	left, err := filepath.Glob(filepath.Join(os.TempDir(), "*"))
	require.NoError(t, err)
	assert.Empty(t, left, "etcd's data must be removed")
}

// TestDemoOnEtcdOfTheUser: it runs beside others there and leaves nothing.
func TestDemoOnEtcdOfTheUser(t *testing.T) {
	etcd := ownEtcd(t)
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"-etcd", etcd}, &stdout, &stderr)
	require.Equal(t, exitOK, code, "%s%s", &stdout, &stderr)

	cli, err := connectEtcd(t.Context(), []string{etcd})
	require.NoError(t, err)
	defer cli.Close()
	// What was killed could not sign off: its lease takes it away.
	require.Eventually(t, func() bool {
		resp, err := cli.Get(t.Context(), "\x00", clientv3.WithFromKey())
		return err == nil && resp.Count == 0
	}, leaseTTL+deadline, 50*time.Millisecond)
}

// TestDemoInterrupted: it ends soon, in order, and does not pass for a success.
func TestDemoInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &interrupter{after: "\n3. ", cancel: cancel}
	var stderr bytes.Buffer
	assert.Equal(t, exitWrong, run(ctx, nil, out, &stderr))
	assert.Equal(t, "stateful-game: the demo was cut short: context canceled\n", stderr.String())
}

// interrupter calls cancel when something was written.
type interrupter struct {
	after  string
	cancel func()
}

func (w *interrupter) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.after) {
		w.cancel()
	}
	return len(p), nil
}

// TestVerdicts: a move is needed only if the server is gone, and a server that
// leaves in order is no excuse for a loss.
func TestVerdicts(t *testing.T) {
	for _, tc := range []struct {
		name, gone string
		kind       eventKind
		wrong      int
	}{
		{"carried from a draining server", drained, carried, 0},
		{"lost with a killed server", killed, lost, 0},
		{"lost with a drained server", drained, lost, 1},
		{"lost with a living server", "", lost, 1},
		{"carried from a living server", "", carried, 1},
		{"drifted from a living server", "", drifted, 1},
		{"came", "", came, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			d := &demo{out: &out, gone: map[string]string{}, started: time.Now()}
			if tc.gone != "" {
				d.leaves("game-1", tc.gone)
			}
			d.happened(playerEvent{player: "ada", kind: tc.kind, from: "game-1", to: "game-2", points: 7})
			assert.Len(t, d.wrong, tc.wrong)
			d.printTable()
			assert.Equal(t, tc.gone == "" && tc.kind != came, strings.Contains(out.String(), "NEEDLESS"), out.String())
		})
	}
}

// TestFailuresAreFound: a failed call shows in the table and in the verdict.
func TestFailuresAreFound(t *testing.T) {
	var out bytes.Buffer
	d := &demo{out: &out, started: time.Now()}
	d.tally.count("step of ada", nil)
	d.tally.count("step of bo", context.DeadlineExceeded)
	d.printTable()
	assert.Contains(t, out.String(), "calls: 2, failed: 1")
	assert.Equal(t, []string{"1 calls failed, first step of bo: context deadline exceeded"}, d.wrong)
}
