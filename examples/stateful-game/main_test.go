package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// deadline bounds each wait of a test for something that must happen.
const deadline = 20 * time.Second

// pollTime is the time between two looks at what must happen.
const pollTime = 20 * time.Millisecond

// TestFlags: a flag that cannot work is one line on stderr and status 2, before
// anything is started.
func TestFlags(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"-nonsense", "flag provided but not defined: -nonsense"},
		{"-every x", `invalid value "x" for flag -every: parse error`},
		{"server", `unexpected argument "server"`},
		{"-role nobody", `-role must be demo, server or client, got "nobody"`},
		{"-role server -id 1", "-role server needs -etcd"},
		{"-role client", "-role client needs -etcd"},
		{"-role client -etcd a,,b", `-etcd must be comma separated endpoints, got "a,,b"`},
		{"-role server -etcd a", "-role server needs -id"},
		{"-role server -etcd a -id 1 -addr 7001", `-addr must be host:port, got "7001"`},
		{"-role server -etcd a -id 1 -addr :7001", `-addr must name a host that clients can reach, got ":7001"`},
		{"-role server -etcd a -id 1 -addr [::]:7001", `-addr must name a host that clients can reach, got "[::]:7001"`},
		{"-role server -etcd a -id 1 -name ada", "-name has no meaning with -role server"},
		{"-role client -etcd a -addr 127.0.0.1:1", "-addr has no meaning with -role client"},
		{"-role client -etcd a -every 0s", "-every must be more than 0, got 0s"},
		{"-role client -etcd a -service /game", `-service must be a name that does not begin or end with a slash, got "/game"`},
		{"-role client -etcd a -name=", "-name must not be empty"},
		{"-id 1", "-id has no meaning with -role demo"},
		{"-http 8080", `-http must be host:port, like 127.0.0.1:8080 or :8080, got "8080"`},
		{"-http=", `-http must be host:port, like 127.0.0.1:8080 or :8080, got ""`},
		{"-http localhost:http", `-http must be host:port, like 127.0.0.1:8080 or :8080, got "localhost:http"`},
		{"-http :8080 -etcd a", `-etcd has no meaning with -http, which stops and starts an etcd of its own, got "a"`},
		{"-http :8080 -role server -etcd a -id 1", "-http has no meaning with -role server"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), strings.Fields(tc.args), &stdout, &stderr)
			assert.Equal(t, exitUsage, code)
			assert.Equal(t, "stateful-game: "+tc.want+"\n", stderr.String())
			assert.Empty(t, stdout.String())
		})
	}
}

func TestHelp(t *testing.T) {
	var stdout, stderr bytes.Buffer
	assert.Equal(t, exitOK, run(t.Context(), []string{"-h"}, &stdout, &stderr))
	assert.Contains(t, stdout.String(), "-role")
	assert.Empty(t, stderr.String())
}

// TestUnreachableEtcd: every role says within 5 s that etcd does not answer.
func TestUnreachableEtcd(t *testing.T) {
	binary := build(t)
	for _, role := range []string{"demo", "client", "server -id 1"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			args := append([]string{"-etcd", "127.0.0.1:1", "-role"}, strings.Fields(role)...)
			cmd := exec.CommandContext(ctx, binary, args...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			var exit *exec.ExitError
			require.ErrorAs(t, cmd.Run(), &exit)
			assert.Equal(t, exitUsage, exit.ExitCode())
			assert.Equal(t, "stateful-game: no answer from etcd at 127.0.0.1:1: waited 3s\n", stderr.String())
			assert.Empty(t, stdout.String())
		})
	}
}

// TestFourTerminals is the README's sequence, each part a process of its own:
// two servers, a client that wants the first, and then the servers leave.
func TestFourTerminals(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("there is no SIGINT to send to a process")
	}
	binary := build(t)
	etcd := ownEtcd(t)

	server := func(id string) *process {
		p := start(t, binary, "-role", "server", "-etcd", etcd, "-id", id)
		p.await(t, "server "+id+" is registered")
		return p
	}
	one, two := server("1"), server("2")
	client := start(t, binary, "-role", "client", "-etcd", etcd, "-id", "1", "-name", "ada", "-every", "50ms")
	client.await(t, "server 1 has not met ada: a new game")
	client.await(t, `call 5: server 1 answered: score 5,`)

	// The other server leaves: nothing happens to this player.
	two.interrupt(t)
	two.await(t, "server 2 is draining", "server 2 is closed")
	require.NoError(t, two.wait(t))
	n := client.calls()
	client.await(t, fmt.Sprintf("call %d: server 1 answered: score %d,", n+5, n+5))
	client.notSaid(t, "server 2", "no answer")

	// The player's own server leaves: the score goes along to the other.
	two = server("2")
	one.interrupt(t)
	require.NoError(t, one.wait(t))
	client.await(t, "server 1 leaves: ada goes to server 2 and takes ")
	n = client.calls()
	client.await(t, fmt.Sprintf("call %d: server 2 answered: score %d,", n+5, n+5))
	client.notSaid(t, "no answer", "lost")

	// None is left: the client says so and goes on when there is one again.
	two.interrupt(t)
	require.NoError(t, two.wait(t))
	client.await(t, "no answer: ")
	three := server("3")
	client.await(t, "goes to server 3 and takes ", "server 3 answered: score ")

	client.interrupt(t)
	require.NoError(t, client.wait(t))
	three.interrupt(t)
	require.NoError(t, three.wait(t))
	for _, p := range []*process{one, two, three, client} {
		assert.Empty(t, p.stderr.String())
	}
}

// TestComeBack: a new client process that knows the id finds its score, and the
// death of a server by kill -9 is noticed as a loss.
func TestComeBack(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("there is no SIGINT to send to a process")
	}
	binary := build(t)
	etcd := ownEtcd(t)
	var servers []*process
	for _, id := range []string{"1", "2", "3"} {
		s := start(t, binary, "-role", "server", "-etcd", etcd, "-id", id)
		s.await(t, "server "+id+" is registered")
		servers = append(servers, s)
	}
	args := []string{"-role", "client", "-etcd", etcd, "-id", "2", "-name", "bo", "-every", "50ms"}

	client := start(t, binary, args...)
	client.await(t, "call 7: server 2 answered: score 7,")
	client.interrupt(t)
	require.NoError(t, client.wait(t))
	score := client.calls()

	client = start(t, binary, args...)
	client.await(t, "server 2 knows bo: welcome back, score ")
	client.await(t, fmt.Sprintf("call 3: server 2 answered: score %d,", score+3))

	require.NoError(t, servers[1].cmd.Process.Kill())
	client.await(t, "server 2 is gone: bo lands on server ", "points are lost", "has not met bo: a new game")
	client.interrupt(t)
	require.NoError(t, client.wait(t))
	for _, s := range []*process{servers[0], servers[2]} {
		s.interrupt(t)
		require.NoError(t, s.wait(t))
	}
}

// TestTakenID: a second server with a living server's id is refused.
func TestTakenID(t *testing.T) {
	t.Parallel()
	etcd := ownEtcd(t)
	args := []string{"-role", "server", "-etcd", etcd, "-id", "1"}
	binary := build(t)
	first := start(t, binary, args...)
	first.await(t, "server 1 is registered")

	second := start(t, binary, args...)
	var exit *exec.ExitError
	require.ErrorAs(t, second.wait(t), &exit)
	assert.Equal(t, exitWrong, exit.ExitCode())
	assert.Equal(t, 1, strings.Count(second.stderr.String(), "\n"), second.stderr.String())
	assert.Contains(t, second.stderr.String(), "taken")
}

// ownEtcd runs an etcd for the test. It ends after the processes that are started
// later: it would wait for their connections.
func ownEtcd(t *testing.T) string {
	t.Helper()
	endpoint, stop, err := startEtcd()
	require.NoError(t, err)
	t.Cleanup(stop)
	return endpoint
}

// build returns the path of the program.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stateful-game")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return path
}

// process is the program at work.
type process struct {
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	done   chan struct{} // closed when it has ended; err says how
	err    error

	mu    sync.Mutex
	lines []string
}

func start(t *testing.T, binary string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(binary, args...), stderr: new(bytes.Buffer), done: make(chan struct{})}
	p.cmd.Stderr = p.stderr
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.done)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, lines.Text())
			p.mu.Unlock()
		}
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%v:\n%s%s", args, p.output(), p.stderr)
		}
	})
	return p
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(append(p.lines, ""), "\n")
}

// await waits until all of wanted have been printed.
func (p *process) await(t *testing.T, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		require.Eventually(t, func() bool { return strings.Contains(p.output(), want) },
			deadline, 5*time.Millisecond, "never said: %s", want)
	}
}

func (p *process) notSaid(t *testing.T, unwanted ...string) {
	t.Helper()
	for _, s := range unwanted {
		assert.NotContains(t, p.output(), s)
	}
}

var callLine = regexp.MustCompile(`(?m)^call (\d+): `)

// calls returns the number of the last call.
func (p *process) calls() (n int) {
	for _, m := range callLine.FindAllStringSubmatch(p.output(), -1) {
		_, _ = fmt.Sscan(m[1], &n)
	}
	return n
}

func (p *process) interrupt(t *testing.T) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGINT))
}

func (p *process) wait(t *testing.T) error {
	t.Helper()
	select {
	case <-p.done:
		return p.err
	case <-time.After(deadline):
		require.Fail(t, "the process does not end")
		return io.ErrUnexpectedEOF
	}
}
