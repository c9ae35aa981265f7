package e2e

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/metadata"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/stickybalancer"
)

// logs are the lines that our components log while on. gRPC wants its logger before all
// else, so it is set for all tests; otherwise it does as gRPC's default does.
var logs = &grpcLog{LoggerV2: grpclog.NewLoggerV2(discard{}, discard{}, os.Stderr)}

func init() { grpclog.SetLoggerV2(logs) }

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

type grpcLog struct {
	grpclog.LoggerV2
	on  atomic.Bool
	mu  sync.Mutex
	all []string
}

func (l *grpcLog) V(level int) bool { return l.on.Load() && level <= 2 }

func (l *grpcLog) keep(severity string, args []any) {
	line := fmt.Sprintln(args...)
	if l.on.Load() && (strings.Contains(line, "[stickybalancer]") || strings.Contains(line, "[homing-registry]") || strings.Contains(line, "[affinity]")) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.all = append(l.all, severity+" "+line)
	}
}

func (l *grpcLog) Info(args ...any)                 { l.keep("INFO", args) }
func (l *grpcLog) Infoln(args ...any)               { l.keep("INFO", args) }
func (l *grpcLog) Infof(f string, args ...any)      { l.keep("INFO", []any{fmt.Sprintf(f, args...)}) }
func (l *grpcLog) Warning(args ...any)              { l.keep("WARNING", args) }
func (l *grpcLog) Warningln(args ...any)            { l.keep("WARNING", args) }
func (l *grpcLog) Warningf(f string, args ...any)   { l.keep("WARNING", []any{fmt.Sprintf(f, args...)}) }
func (l *grpcLog) InfoDepth(_ int, args ...any)     { l.keep("INFO", args) }
func (l *grpcLog) WarningDepth(_ int, args ...any)  { l.keep("WARNING", args) }
func (l *grpcLog) ErrorDepth(_ int, args ...any)    { l.keep("ERROR", args) }
func (l *grpcLog) FatalDepth(depth int, arg ...any) { l.LoggerV2.Fatal(arg...) }

// text returns what was logged.
func (l *grpcLog) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.all, "")
}

// Records are lost, servers die, calls are held and move, all with keys, sealed ids and
// their secrets in play. What our components log of it, at any level, names servers, and
// no caller.
func TestNoKeyAndNoSecretIsLogged(t *testing.T) {
	logs.on.Store(true)
	defer logs.on.Store(false)
	const key = "players-own-key-4711"
	secret := bytes.Repeat([]byte{0xA7}, 32)
	sealer, err := affinity.NewSealer(time.Hour, secret)
	require.NoError(t, err)
	sealedKey, err := sealer.SealKey(key, "alice")
	require.NoError(t, err)
	sealedID, err := sealer.SealID("a", "alice")
	require.NoError(t, err)

	e := startEtcd(t)
	cli := e.newClient()
	a, b := startServer(t, "a"), startServer(t, "b")
	register(t, cli, a)
	register(t, cli, b)
	_, err = cli.Put(bg, service+"/c", `{"Addr":""}`) // is warned of
	require.NoError(t, err)
	c := newChannel(t, e.newClient(), stickybalancer.Config{ReconnectWindow: 200 * time.Millisecond, AbsentGrace: time.Second})
	c.sees("a", "b")

	session := affinity.NewSession(key)
	call := func() {
		_, _ = c.call(session.Context(bg))
		_, _ = c.call(affinity.WithKey(bg, key))
		_, _ = c.call(affinity.With(bg, sealedID))
		_, _ = c.call(metadata.AppendToOutgoingContext(bg, affinity.IDHeader, sealedID, affinity.KeyHeader, sealedKey))
	}
	call()
	home := a
	if session.ID("etcd:///"+service) == "b" {
		home = b
	}
	home.grpc.Stop()
	call() // is held, and moves
	_, err = cli.Delete(bg, service+"/a")
	require.NoError(t, err)
	soon(t, func() bool {
		_, after, lost := strings.Cut(logs.text(), fmt.Sprintf("the server %q at %s is lost", service+"/a", a.addr))
		return lost && strings.Contains(after, fmt.Sprintf("the server %q at %s is registered", service+"/a", a.addr))
	}, "the record is back")
	call()

	got := logs.text()
	require.Contains(t, got, `INFO [stickybalancer]`)
	require.Contains(t, got, `has been away for the window`)
	require.Contains(t, got, `WARNING [homing-registry]`)
	for _, hidden := range []string{key, sealedID, sealedKey, "hs1.", string(secret), hex.EncodeToString(secret)} {
		require.NotContains(t, got, hidden)
	}
}
