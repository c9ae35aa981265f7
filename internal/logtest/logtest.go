// Package logtest keeps what a component of gRPC's log warns of, for tests. To import it
// sets gRPC's logger, which has to be done before all else; otherwise that does as gRPC's
// default does.
package logtest

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/grpclog"
)

// Warnings returns a func that returns the warnings of a component of grpclog since
// Warnings was called, in order. It keeps none after the test's end.
func Warnings(t testing.TB, component string) func() []string {
	c := &capture{prefix: "[" + component + "] "}
	all.mu.Lock()
	defer all.mu.Unlock()
	all.captures = append(all.captures, c)
	t.Cleanup(func() {
		all.mu.Lock()
		defer all.mu.Unlock()
		all.captures = slices.DeleteFunc(all.captures, func(o *capture) bool { return o == c })
	})
	return func() []string {
		all.mu.Lock()
		defer all.mu.Unlock()
		return slices.Clone(c.lines)
	}
}

type capture struct {
	prefix string
	lines  []string
}

type logger struct {
	grpclog.LoggerV2
	mu       sync.Mutex
	captures []*capture
}

var all = &logger{LoggerV2: grpclog.NewLoggerV2(io.Discard, io.Discard, os.Stderr)}

func init() { grpclog.SetLoggerV2(all) }

// WarningDepth is what components call.
func (l *logger) WarningDepth(_ int, args ...any) {
	line := strings.TrimSpace(fmt.Sprintln(args...))
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.captures {
		if rest, ok := strings.CutPrefix(line, c.prefix); ok {
			c.lines = append(c.lines, rest)
		}
	}
}

func (l *logger) InfoDepth(int, ...any) {}

func (l *logger) ErrorDepth(_ int, args ...any) { l.Errorln(args...) }

func (l *logger) FatalDepth(_ int, args ...any) { l.Fatalln(args...) }
