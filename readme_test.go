package homing_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/experimental/stats"
)

func TestReadmeSnippetsAreCompiledCode(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	code, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	snippets := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, snippets)
	for _, s := range snippets {
		require.Contains(t, flat(string(code)), flat(s[1]))
	}
}

func TestReadmeListsAllMetrics(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	n := 0
	for name := range stats.DefaultMetrics.Metrics() {
		if !strings.HasPrefix(name, "homing.") {
			continue
		}
		n++
		d := stats.DescriptorForMetric(name)
		require.Contains(t, string(readme), fmt.Sprintf("| `%s` | `%s` |", name, d.Unit))
	}
	require.Equal(t, n, strings.Count(string(readme), "\n| `homing."))
}

// flat removes the indentation, which differs.
func flat(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "\n")
}
