package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/internal/operator"
	"github.com/homing-grpc/homing/stickybalancer"
)

// homing runs the operator's command.
func homing(args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(bg, time.Minute)
	defer cancel()
	status = operator.Run(ctx, append([]string{"homing"}, args...), &out, &errs)
	return status, out.String(), errs.String()
}

// operate runs it on e.
func (e *etcd) operate(args ...string) (status int, stdout, stderr string) {
	return homing(append([]string{"--endpoints", e.client.Host}, args...)...)
}

// does requires that the command succeeds, and returns what it prints.
func (e *etcd) does(args ...string) string {
	e.t.Helper()
	status, stdout, stderr := e.operate(args...)
	require.Zero(e.t, status, "%s: %s%s", args, stdout, stderr)
	return stdout
}

// row is a server as -o json has it.
type row struct {
	Service, ID, Address, Zone, State, Key, Error, Place, Event string
	Weight                                                      uint32
	Draining                                                    bool
	AgeSeconds                                                  *int64
	Operator                                                    *struct {
		Draining, Heeded bool
		Weight           uint32
	}
}

func (e *etcd) rows(args ...string) map[string]row {
	e.t.Helper()
	var rows []row
	require.NoError(e.t, json.Unmarshal([]byte(e.does(append(args, "-o", "json")...)), &rows))
	m := make(map[string]row)
	for _, r := range rows {
		m[r.ID] = r
	}
	return m
}

// at registers a server of which there is no more than its record.
func at(t *testing.T, cli *clientv3.Client, addr string, m endpointsmeta.Meta, opts ...registry.RegisterOption) *registry.Registration {
	t.Helper()
	return registerMeta(t, cli, &server{id: m.ID, addr: addr}, m, opts...)
}

// put writes a record by hand.
func put(t testing.TB, cli *clientv3.Client, key, value string, opts ...clientv3.OpOption) {
	t.Helper()
	_, err := cli.Put(bg, key, value, opts...)
	require.NoError(t, err)
}

func TestLsShowsTheServersOfAService(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a", Weight: 3, Zone: "eu-1"})
	b := at(t, cli, "127.0.0.1:2", endpointsmeta.Meta{ID: "b"})
	require.NoError(t, b.Drain(bg))
	put(t, cli, service+"/bad", "garbage")
	put(t, cli, service+"/eu/c", `{"Addr":"127.0.0.1:3"}`) // another service's
	require.Regexp(t, `^SERVICE +ID +ADDRESS +WEIGHT +ZONE +STATE +AGE
game +a +127.0.0.1:1 +3 +eu-1 +registered +\d+s
game +b +127.0.0.1:2 +1 +- +draining +\d+s
game +bad +- +- +- +bad record +-
$`, e.does("ls", service))
	require.Equal(t, e.does("ls", service), e.does("-s", service, "ls"))
}

func TestLsHasTheSameInJSON(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a", Weight: 3, Zone: "eu-1"})
	put(t, cli, service+"/old", `{"Addr":"127.0.0.1:2"}`)
	put(t, cli, service+"/bad", "garbage")
	rows := e.rows("ls", service)
	a := rows["a"]
	require.NotNil(t, a.AgeSeconds)
	require.Less(t, *a.AgeSeconds, int64(60))
	a.AgeSeconds = nil
	require.Equal(t, row{Service: service, ID: "a", Address: "127.0.0.1:1", Weight: 3, Zone: "eu-1", State: "registered", Key: "game/a"}, a)
	require.Nil(t, rows["127.0.0.1:2"].AgeSeconds, "its record does not say")
	require.Contains(t, rows["bad"].Error, "JSON")
	require.Equal(t, "[]\n", e.does("ls", "nobody", "-o", "json"))
}

func TestLsFindsTheServicesAmongOtherKeys(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	put(t, cli, service+"/bad", "garbage")
	put(t, cli, "chat/eu/b", `{"Addr":"127.0.0.1:2"}`)
	put(t, cli, "config/x", `{"a":1}`)
	put(t, cli, "/registry/pods/x", `{"kind":"Pod"}`)
	put(t, cli, "/naming/game/b", `{"Addr":"127.0.0.1:3"}`)
	put(t, cli, "own/json", `{"addr":"127.0.0.1:5","pid":7}`)
	put(t, cli, "config/http", `{"addr":":8080"}`)
	put(t, cli, "/homing/operator/game/gone", `{"Addr":"127.0.0.1:4"}`)
	for i := range 1100 { // more than a page
		put(t, cli, fmt.Sprintf("m/%d", i), "x")
	}
	rows := e.rows("ls")
	require.Len(t, rows, 5)
	require.Equal(t, "own", rows["127.0.0.1:5"].Service)
	require.Equal(t, "chat/eu", rows["127.0.0.1:2"].Service)
	require.Equal(t, "/naming/game", rows["127.0.0.1:3"].Service)
	require.Equal(t, service, rows["a"].Service)
	require.Equal(t, "bad record", rows["bad"].State)
}

// output collects what a command prints while it runs.
type output struct {
	mu sync.Mutex
	b  strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (o *output) has(parts ...string) func() bool {
	return func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, line := range strings.Split(o.b.String(), "\n") {
			all := true
			for _, p := range parts {
				all = all && strings.Contains(line, p)
			}
			if all {
				return true
			}
		}
		return false
	}
}

// watch runs homing watch until the test calls what it returns.
func (e *etcd) watch(out, errs io.Writer, args ...string) (end func() int) {
	ctx, cancel := context.WithCancel(bg)
	status := make(chan int, 1)
	go func() {
		status <- operator.Run(ctx, append([]string{"homing", "--endpoints", e.client.Host, "watch"}, args...), out, errs)
	}()
	end = sync.OnceValue(func() int {
		cancel()
		return <-status
	})
	e.t.Cleanup(func() { end() })
	return end
}

func TestWatchPrintsChangesUntilItIsStopped(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	a := at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	var table, lines output
	end, endJSON := e.watch(&table, io.Discard, service), e.watch(&lines, io.Discard, service, "-o", "json")
	soon(t, table.has("listed", "a", "127.0.0.1:1", "weight 1", "zone -", "registered"), "what there is")
	soon(t, lines.has(`"event":"listed"`, `"id":"a"`, `"state":"registered"`), "what there is")
	b := at(t, cli, "127.0.0.1:2", endpointsmeta.Meta{ID: "b", Zone: "eu-1"})
	soon(t, table.has("added", "b", "127.0.0.1:2", "zone eu-1"), "a server that comes")
	require.NoError(t, a.Update(bg, func(m *endpointsmeta.Meta) { m.Weight = 5 }))
	soon(t, table.has("changed", "a", "weight 5"), "a server that changes")
	e.does("drain", "game/a")
	soon(t, table.has("changed", "a", "draining (operator)"), "who drains it")
	require.NoError(t, b.Close(bg))
	soon(t, table.has("removed", "b"), "a server that leaves")
	soon(t, lines.has(`"event":"removed"`, `"id":"b"`), "a server that leaves")
	require.Zero(t, end())
	require.Zero(t, endJSON())
}

func TestWatchGoesOnThroughAnOutageOfEtcd(t *testing.T) {
	e := startEtcd(t)
	at(t, e.newClient(), "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	var out, errs output
	end := e.watch(&out, &errs, service)
	soon(t, out.has("listed", "a"), "what there is")
	e.stop()
	within(t, 20*time.Second, errs.has("out of reach"), "that etcd is away")
	e.start()
	at(t, e.newClient(), "127.0.0.1:2", endpointsmeta.Meta{ID: "b"})
	within(t, 20*time.Second, out.has("added", "b"), "what came after it")
	require.Zero(t, end())
}

// Real calls by key go where the command says.
func TestWhereIsWhereCallsGo(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	var ids []string
	for i, weight := range []uint32{0, 3, 1, 2} {
		s := startServer(t, fmt.Sprintf("game-%d", i))
		registerMeta(t, cli, s, endpointsmeta.Meta{ID: s.id, Weight: weight, Draining: i == 2})
		if i != 2 {
			ids = append(ids, s.id)
		}
	}
	c := newChannel(t, cli, stickybalancer.Config{})
	c.sees(ids...)
	for i := range 20 {
		key := fmt.Sprintf("player-%d", i)
		var rows []row
		require.NoError(t, json.Unmarshal([]byte(e.does("where", "-s", service, "-o", "json", key)), &rows))
		require.Len(t, rows, 3)
		require.Equal(t, []string{"home", "next", "next"}, []string{rows[0].Place, rows[1].Place, rows[2].Place})
		c.reaches(rows[0].ID, affinity.WithKey(bg, key))
		for _, r := range rows {
			require.NotEqual(t, "game-2", r.ID, "it drains, so it comes last")
		}
	}
	require.Regexp(t, `^PLACE +SERVICE +ID .*\nhome +game +game-\d .*\nnext +game +game-\d .*\nnext +game +game-\d `, e.does("where", "-s", service, "k"))
}

func TestAKeyHasNoHomeWhereThereIsNoServer(t *testing.T) {
	e := startEtcd(t)
	status, _, stderr := e.operate("where", "-s", service, "k")
	require.Equal(t, 1, status)
	require.Equal(t, "homing: \"game\" has no servers, so the key has no home\n", stderr)
}

func TestCheckIsFineWithLivingServers(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	at(t, cli, "127.0.0.1:2", endpointsmeta.Meta{ID: "b"}, registry.WithTTL(3*time.Second))
	e.does("drain", "game/a")
	require.Equal(t, "services: 1, servers: 2, findings: 0\n", e.does("check"))
	require.JSONEq(t, `{"services":1,"servers":2,"findings":[]}`, e.does("check", service, "-o", "json"))
}

func TestCheckFindsWhatIsWrong(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	long, err := cli.Grant(bg, 600)
	require.NoError(t, err)
	lease := clientv3.WithLease(long.ID)
	ending, err := cli.Grant(bg, 9)
	require.NoError(t, err)
	hours := time.Now().Add(-3 * time.Hour).UTC().Format(time.RFC3339)

	put(t, cli, "s/1", `{"Addr":"h:1","Metadata":{"id":"one"}}`, lease)
	put(t, cli, "s/2", `{"Addr":"h:2","Metadata":{"id":"one"}}`, lease)
	put(t, cli, "s/3", `{"Addr":"h:3","Metadata":{"id":"x"}}`, lease)
	put(t, cli, "s/4", `{"Addr":"h:3","Metadata":{"id":"y"}}`, lease)
	put(t, cli, "s/garbage", `garbage`, lease)
	put(t, cli, "s/long", `{"Addr":"h:5","Metadata":{"id":"`+strings.Repeat("a", 300)+`"}}`, lease)
	put(t, cli, "s/nowhere", `{"Addr":""}`, lease)
	put(t, cli, "s/forever", `{"Addr":"h:6"}`)
	put(t, cli, "s/dying", `{"Addr":"h:7"}`, clientv3.WithLease(ending.ID))
	put(t, cli, "/homing/operator/s/gone", `{"draining":true,"since":"`+hours+`"}`)
	put(t, cli, "/homing/operator/s/3", `{"draining":true,"weight":2,"since":"`+hours+`"}`)
	put(t, cli, "/homing/operator/s/odd", `drain!`)
	soon(t, func() bool {
		ttl, err := cli.TimeToLive(bg, ending.ID)
		return err == nil && ttl.TTL <= 2
	}, "a lease that nobody renews")

	var got struct {
		Findings []struct{ Service, ID, Key, Problem, Detail string }
	}
	status, stdout, stderr := e.operate("check", "s", "-o", "json")
	require.Equal(t, 1, status, stderr)
	require.NoError(t, json.Unmarshal([]byte(stdout), &got))
	problems := make(map[string]string)
	for _, f := range got.Findings {
		require.Equal(t, "s", f.Service)
		require.NotEmpty(t, f.Detail)
		problems[f.Key] += f.Problem
	}
	require.Equal(t, map[string]string{
		"s/2":                     "duplicate-id",
		"s/3":                     "unheeded-intent",
		"s/4":                     "duplicate-address",
		"s/garbage":               "bad-record",
		"s/long":                  "bad-record",
		"s/nowhere":               "empty-address",
		"s/forever":               "no-lease",
		"s/dying":                 "lease-ending",
		"/homing/operator/s/gone": "stale-intent",
		"/homing/operator/s/odd":  "bad-intent",
	}, problems)

	status, stdout, _ = e.operate("check", "s")
	require.Equal(t, 1, status)
	require.Regexp(t, `(?m)^s +gone +stale-intent +drain is said since 3h of a server that is not there$`, stdout)
	require.Contains(t, stdout, "services: 1, servers: 9, findings: 10\n")
}

// Nobody puts back what other code has registered once, so its record is changed, and
// stays under its lease.
func TestARecordOfOtherCodeIsChangedItself(t *testing.T) {
	for name, metadata := range map[string]any{"none": nil, "a bare id": "a", "an object": map[string]any{"id": "a", "own": "x"}} {
		t.Run(name, func(t *testing.T) {
			e := startEtcd(t)
			cli := e.newClient()
			lease, err := cli.Grant(bg, 600)
			require.NoError(t, err)
			m, err := endpoints.NewManager(cli, service)
			require.NoError(t, err)
			require.NoError(t, m.AddEndpoint(bg, service+"/key", endpoints.Endpoint{Addr: "127.0.0.1:1", Metadata: metadata}, clientv3.WithLease(lease.ID)))
			id := "a"
			if metadata == nil {
				id = "127.0.0.1:1"
			}
			before, err := cli.Get(bg, service+"/key")
			require.NoError(t, err)

			require.Contains(t, e.does("drain", "-s", service, id), "its record is of other code, and was changed itself")
			require.True(t, listed(t, cli)[id].Meta.Draining)
			e.does("weight", "-s", service, id, "7")
			require.EqualValues(t, 7, listed(t, cli)[id].Meta.Weight)
			e.does("undrain", "-s", service, id)
			require.False(t, listed(t, cli)[id].Meta.Draining)
			require.EqualValues(t, 7, listed(t, cli)[id].Meta.Weight)
			e.does("weight", "-s", service, id, "--reset")

			after, err := cli.Get(bg, service+"/key")
			require.NoError(t, err)
			require.EqualValues(t, lease.ID, after.Kvs[0].Lease)
			if name == "an object" {
				require.JSONEq(t, string(before.Kvs[0].Value), string(after.Kvs[0].Value), "what nobody spoke of is as it was")
			}
			intents, err := cli.Get(bg, "/homing/", clientv3.WithPrefix())
			require.NoError(t, err)
			require.Empty(t, intents.Kvs)
		})
	}
}

func TestLiftingAWordNeedsNoServer(t *testing.T) {
	e := startEtcd(t)
	require.Contains(t, e.does("undrain", "game/a"), "not registered")
}

func TestOneOfTwoRecordsOfAnIDIsNotGuessed(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	put(t, cli, service+"/1", `{"Addr":"h:1","Metadata":{"id":"a"}}`)
	put(t, cli, service+"/2", `{"Addr":"h:2","Metadata":{"id":"a"}}`)
	status, _, stderr := e.operate("drain", "game/a")
	require.Equal(t, 1, status)
	require.Contains(t, stderr, `"game/1" and "game/2"`)
}

// binary builds the command.
func binary(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the command")
	}
	bin := filepath.Join(t.TempDir(), "homing")
	build := exec.Command("go", "build", "-o", bin, "./cmd/homing")
	build.Dir = ".."
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return bin
}

// Ctrl-C is how watch ends.
func TestTheBinaryEndsWatchingWhenItIsInterrupted(t *testing.T) {
	bin, e := binary(t), startEtcd(t)
	at(t, e.newClient(), "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	var printed output
	cmd := exec.Command(bin, "watch", service)
	cmd.Env = append(os.Environ(), "ETCDCTL_ENDPOINTS="+e.client.Host)
	cmd.Stdout = &printed
	require.NoError(t, cmd.Start())
	soon(t, printed.has("listed", "a"), "the binary watches")
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	require.NoError(t, cmd.Wait(), "it ends with 0")
}

func TestTheBinaryExitsWithWhatItSays(t *testing.T) {
	bin, e := binary(t), startEtcd(t)
	put(t, e.newClient(), service+"/a", `{"Addr":"h:1"}`) // without a lease
	t.Setenv("ETCDCTL_ENDPOINTS", e.client.Host)
	for status, args := range [][]string{{"ls", service}, {"check", service}, {"ls", "--bogus"}} {
		cmd := exec.Command(bin, args...)
		_ = cmd.Run()
		require.Equal(t, status, cmd.ProcessState.ExitCode(), "%s", args)
	}
}

// What bash is offered it expands, so an id that could be more than a name is not offered.
func TestShellsCompleteCommandsAndIDs(t *testing.T) {
	bin, e := binary(t), startEtcd(t)
	cli := e.newClient()
	at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "game-1"})
	at(t, cli, "127.0.0.1:2", endpointsmeta.Meta{ID: "$(touch x)"})
	at(t, cli, "127.0.0.1:3", endpointsmeta.Meta{})
	t.Setenv("ETCDCTL_ENDPOINTS", e.client.Host)
	run := func(args ...string) string {
		out, err := exec.Command(bin, args...).Output()
		require.NoError(t, err)
		return string(out)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "pwsh"} {
		require.NotEmpty(t, run("completion", shell))
	}
	require.Contains(t, run("--generate-shell-completion"), "undrain")
	require.Contains(t, run("ls", "--c", "--generate-shell-completion"), "--cacert")
	require.Equal(t, "game-1\n", run("-s", service, "drain", "--generate-shell-completion"))
	require.Empty(t, run("-s", service, "weight", "game-1", "--generate-shell-completion"), "there is an id")
	require.Contains(t, run("-s", service, "weight", "game-1", "--r", "--generate-shell-completion"), "--reset")
}

func TestTheReadmeShowsWhatTheCommandPrints(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	at(t, cli, "10.0.0.7:7000", endpointsmeta.Meta{ID: "game-1", Zone: "eu-1"})
	at(t, cli, "10.0.0.8:7000", endpointsmeta.Meta{ID: "game-2", Zone: "eu-2", Weight: 3})
	at(t, cli, "10.0.0.9:7000", endpointsmeta.Meta{ID: "game-3", Zone: "eu-1"})
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	_, shown, ok := strings.Cut(string(readme), "```console\n$ homing ")
	require.True(t, ok)
	shown, _, _ = strings.Cut("$ homing "+shown, "```")
	printed := ""
	for _, line := range strings.Split(shown, "\n") {
		if command, ok := strings.CutPrefix(line, "$ homing "); ok {
			printed += line + "\n" + e.does(strings.Fields(command)...)
		}
	}
	ages := regexp.MustCompile(`\d+[smhd]\n`)
	require.Equal(t, ages.ReplaceAllString(shown, "AGE\n"), ages.ReplaceAllString(printed, "AGE\n"))
}

func TestHelpHasExamples(t *testing.T) {
	for _, command := range []string{"", "ls", "watch", "drain", "undrain", "weight", "where", "check"} {
		status, stdout, _ := homing(strings.Fields(command + " -h")...)
		require.Zero(t, status)
		require.Contains(t, stdout, "Examples:", command)
	}
	for _, args := range []string{"drain game/a -h", "weight game/a 3 --help", "ls game -h"} {
		status, stdout, _ := homing(strings.Fields(args)...)
		require.Zero(t, status, args)
		require.Contains(t, stdout, "Examples:", args)
	}
	status, _, stderr := homing("help", "nosuch")
	require.Equal(t, 2, status)
	require.Contains(t, stderr, "nosuch")
}

// The record of the old binary has not ended yet: clients pass it over, whatever id is the
// smaller one.
func TestWhereKnowsOfAServerUpgradedInPlace(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	put(t, cli, service+"/127.0.0.1:1", `{"Addr":"127.0.0.1:1"}`)
	at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "game-1"})
	var rows []row
	require.NoError(t, json.Unmarshal([]byte(e.does("where", "-s", service, "player-7", "-o", "json")), &rows))
	require.Len(t, rows, 1)
	require.Equal(t, "game-1", rows[0].ID)
}
