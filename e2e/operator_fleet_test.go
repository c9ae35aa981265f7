package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/internal/operator"
	"github.com/homing-grpc/homing/stickybalancer"
)

// within returns a client whose keys are in a namespace of etcd's.
func (e *etcd) within(prefix string) *clientv3.Client {
	cli := e.newClient()
	cli.KV = namespace.NewKV(cli.KV, prefix)
	cli.Watcher = namespace.NewWatcher(cli.Watcher, prefix)
	cli.Lease = namespace.NewLease(cli.Lease, prefix)
	return cli
}

// A fleet in the middle of a migration: one server of each kind, and one of both.
func migrating(t *testing.T, e *etcd) (cli *clientv3.Client, leased clientv3.OpOption) {
	cli = e.newClient()
	lease, err := cli.Grant(bg, 600)
	require.NoError(t, err)
	leased = clientv3.WithLease(lease.ID)
	put(t, cli, service+"/7587", "127.0.0.1:1", leased)
	put(t, cli, service+"/127.0.0.1:2", "127.0.0.1:2", leased)
	at(t, cli, "127.0.0.1:2", endpointsmeta.Meta{ID: "b"})
	at(t, cli, "127.0.0.1:3", endpointsmeta.Meta{ID: "c"})
	return cli, leased
}

func TestPlainAddressesAreServersWhereClientsReadThem(t *testing.T) {
	e := startEtcd(t)
	cli, leased := migrating(t, e)
	rows := e.rows("ls", service, "--plain-addresses")
	require.Len(t, rows, 4)
	plain := rows["127.0.0.1:1"]
	require.Equal(t, row{Service: service, ID: "127.0.0.1:1", Address: "127.0.0.1:1", Weight: 1, State: "registered", Key: "game/7587"}, plain)
	require.Equal(t, "passed over", rows["127.0.0.1:2"].State)
	all := e.rows("ls", "--plain-addresses")
	require.Len(t, all, len(rows))
	for id, r := range all {
		require.Equal(t, rows[id].Key+rows[id].State, r.Key+r.State)
	}
	require.Equal(t, "services: 1, servers: 4, findings: 0\n", e.does("check", "--plain-addresses"))

	var out output
	e.watch(&out, io.Discard, service, "--plain-addresses")
	soon(t, out.has("listed", "127.0.0.1:1"), "what there is")
	put(t, cli, service+"/7588", "127.0.0.1:4", leased)
	soon(t, out.has("added", "127.0.0.1:4"), "what comes")
	require.False(t, out.has("127.0.0.1:2  127.0.0.1:2")(), "clients pass it over")

	t.Setenv("HOMING_PLAIN_ADDRESSES", "true")
	require.Len(t, e.rows("ls", service), 5)
}

func TestWithoutPlainAddressesCheckNamesTheFlag(t *testing.T) {
	e := startEtcd(t)
	migrating(t, e)
	status, stdout, _ := e.operate("check", service)
	require.Equal(t, 1, status)
	require.Regexp(t, `game +7587 +bad-record +the record "game/7587": .*plain address \(--plain-addresses reads it\)\n`, stdout)
	require.Equal(t, "bad record", e.rows("ls", service)["7587"].State)
}

// Clients that read plain addresses go by key where the command says.
func TestWhereKnowsOfPlainAddresses(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	names := make(map[string]string) // by address
	for i := range 4 {
		s := startServer(t, fmt.Sprintf("game-%d", i))
		names[s.addr] = s.id
		if i%2 == 0 {
			put(t, cli, fmt.Sprintf("%s/%d", service, i), s.addr)
		} else {
			register(t, cli, s)
		}
	}
	c := newChannelTo(t, cli, "etcd:///"+service)
	c.sees("game-0", "game-1", "game-2", "game-3")
	for i := range 10 {
		key := fmt.Sprintf("player-%d", i)
		var rows []row
		require.NoError(t, json.Unmarshal([]byte(e.does("where", "-s", service, "--plain-addresses", "-o", "json", key)), &rows))
		require.Len(t, rows, 3)
		c.reaches(names[rows[0].Address], affinity.WithKey(bg, key))
	}
}

// Its server reads nothing but its own flags, and old clients nothing but the address.
func TestAPlainAddressHasNoPlaceForWhatOperatorsSay(t *testing.T) {
	e := startEtcd(t)
	cli, _ := migrating(t, e)
	status, _, stderr := e.operate("drain", "game/127.0.0.1:1")
	require.Equal(t, 1, status)
	require.Contains(t, stderr, `homing: the record "game/7587" is a plain address, which has no place`)
	require.Contains(t, e.does("undrain", "game/127.0.0.1:1"), "a plain address")
	now, err := cli.Get(bg, service+"/7587")
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:1", string(now.Kvs[0].Value))
}

// A record of other code that drains, and never ends, hides nothing but another record of
// its own address, to clients and to the command.
func TestARecordThatNamesNoIDIsPassedOverAsByClients(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	put(t, cli, service+"/old", `{"Addr":"127.0.0.1:1"}`)
	put(t, cli, service+"/new", `{"Addr":"127.0.0.1:1","Metadata":{"id":"a","draining":true}}`)
	put(t, cli, service+"/twin", `{"Addr":"127.0.0.1:2"}`)
	put(t, cli, service+"/uncle", `{"Addr":"127.0.0.1:2"}`)
	var rows []row
	require.NoError(t, json.Unmarshal([]byte(e.does("ls", service, "-o", "json")), &rows))
	var seen []string
	for _, r := range rows {
		if r.State != "passed over" {
			seen = append(seen, r.Key)
		}
	}
	list, err := registry.List(bg, cli, service)
	require.NoError(t, err)
	var keys []string
	for _, i := range list {
		keys = append(keys, i.Key)
	}
	require.Equal(t, []string{"game/twin", "game/new"}, keys)
	require.Equal(t, keys, seen)
	_, stdout, _ := e.operate("check", service)
	require.NotContains(t, stdout, "duplicate")
	require.Equal(t, 4, strings.Count(stdout, "no-lease"))
}

func TestANamespaceIsTheServers(t *testing.T) {
	e := startEtcd(t)
	cli := e.within("prod/")
	s := startServer(t, "a")
	reg := register(t, cli, s)
	newChannel(t, cli, stickybalancer.Config{}).sees("a")
	at(t, e.newClient(), "127.0.0.1:2", endpointsmeta.Meta{ID: "outside"})
	in := []string{"--namespace", "prod/"}

	for _, ls := range [][]string{{"ls"}, {"ls", service}} {
		rows := e.rows(append(in, ls...)...)
		require.Len(t, rows, 1)
		require.Equal(t, "game/a", rows["a"].Key)
	}
	var out output
	e.watch(&out, io.Discard, append(in, service)...)
	soon(t, out.has("listed", "a"), "what there is")
	require.Equal(t, "a drains\n", e.does(append(in, "drain", "game/a")...))
	require.Equal(t, registry.Draining, reg.State())
	soon(t, out.has("changed", "a", "draining (operator)"), "who drains it")
	require.Equal(t, "services: 1, servers: 1, findings: 0\n", e.does(append(in, "check")...))
	t.Setenv("HOMING_NAMESPACE", "prod/")
	require.Contains(t, e.does("where", "-s", service, "k"), s.addr)
	e.does("undrain", "game/a")
	require.Equal(t, registry.Registered, reg.State())

	status, _, stderr := e.operate("drain", "game/outside")
	require.Equal(t, 2, status)
	require.Contains(t, stderr, `"game" in the namespace "prod/" has no server with the id "outside"`)
}

// Who says it knows that the server is to come.
func TestAWordIsSaidOfAServerThatIsToCome(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	for _, args := range [][]string{{"drain", "game/a"}, {"weight", "game/a", "7"}} {
		status, _, stderr := e.operate(args...)
		require.Equal(t, 2, status)
		require.Equal(t, "homing: \"game\" has no server with the id \"a\": see homing ls game, or say it with --absent of one that is to come\n", stderr)
	}
	require.Equal(t, "a is not registered; it will drain from when it registers, by homing's registry, until homing undrain game/a\n",
		e.does("drain", "game/a", "--absent"))
	require.Equal(t, "a is not registered; it will have weight 7 from when it registers, by homing's registry, until homing weight game/a --reset\n",
		e.does("weight", "game/a", "7", "--absent"))
	var r row
	require.NoError(t, json.Unmarshal([]byte(e.does("drain", "game/a", "--absent", "-o", "json")), &r))
	require.Equal(t, "not registered", r.State)
	require.True(t, r.Operator.Draining)
	require.False(t, r.Operator.Heeded)

	reg := at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.Equal(t, registry.Draining, reg.State())
	require.EqualValues(t, 7, reg.Meta().Weight)
	require.Equal(t, "a drains\n", e.does("drain", "game/a", "--absent"), "as without, if it is there")
	status, _, stderr := e.operate("drain", "game/\x01", "--absent")
	require.Equal(t, 2, status)
	require.Contains(t, stderr, "id must", "no server can have it")
}

func TestWatchHasTheSameInJSONAsLs(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a", Labels: map[string]string{"v": "1"}})
	put(t, cli, "/homing/operator/game/deaf", `{"draining":true,"since":"2026-11-21T10:00:00Z"}`)
	put(t, cli, service+"/deaf", `{"Addr":"127.0.0.1:2","Metadata":{"id":"deaf","incarnation":7}}`)
	e.does("drain", "game/a")
	var out output
	e.watch(&out, io.Discard, service, "-o", "json")
	// same requires that the last line about id is what ls says.
	same := func(event, id string, weight int) {
		t.Helper()
		soon(t, out.has(`"event":"`+event+`"`, `"id":"`+id+`"`, fmt.Sprintf(`"weight":%d`, weight)), event)
		var want []map[string]any
		require.NoError(t, json.Unmarshal([]byte(e.does("ls", service, "-o", "json")), &want))
		for _, line := range slices.Backward(strings.Split(out.String(), "\n")) {
			if !strings.Contains(line, `"id":"`+id+`"`) {
				continue
			}
			got := make(map[string]any)
			require.NoError(t, json.Unmarshal([]byte(line), &got))
			require.Equal(t, event, got["event"])
			require.Contains(t, got, "time")
			delete(got, "event")
			delete(got, "time")
			n := slices.IndexFunc(want, func(r map[string]any) bool { return r["id"] == id })
			delete(got, "ageSeconds")
			delete(want[n], "ageSeconds")
			require.Equal(t, want[n], got)
			return
		}
	}
	same("listed", "a", 1)
	same("listed", "deaf", 1)
	at(t, cli, "127.0.0.1:3", endpointsmeta.Meta{ID: "b"})
	same("added", "b", 1)
	e.does("weight", "game/a", "7")
	same("changed", "a", 7)
	// It changes, and still does not heed.
	put(t, cli, service+"/deaf", `{"Addr":"127.0.0.1:2","Metadata":{"id":"deaf","incarnation":7,"weight":5}}`)
	same("changed", "deaf", 5)
	require.False(t, out.has(`"id":"deaf"`, `"heeded":true`)())
}

func TestWhatALaterReleaseHasSaidIsKept(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	put(t, cli, "/homing/operator/game/a", `{"draining":true,"zone":"eu-2"}`)
	reg := at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.Equal(t, registry.Draining, reg.State())
	e.does("weight", "game/a", "7")
	e.does("undrain", "game/a")
	e.does("weight", "game/a", "--reset")
	require.Equal(t, registry.Registered, reg.State())
	now, err := cli.Get(bg, "/homing/operator/game/a")
	require.NoError(t, err)
	require.Len(t, now.Kvs, 1)
	var said map[string]any
	require.NoError(t, json.Unmarshal(now.Kvs[0].Value, &said))
	delete(said, "since")
	require.Equal(t, map[string]any{"zone": "eu-2"}, said)
	require.Equal(t, "services: 1, servers: 1, findings: 0\n", e.does("check"))
}

// Pages are of one revision, and none is lost between two.
func TestAServiceOfManyPagesIsReadWhole(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	const servers = 2500
	var ops []clientv3.Op
	for i := range servers {
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("%s/%04d", service, i), fmt.Sprintf(`{"Addr":"127.0.0.1:%d","Metadata":{"id":"%04d"}}`, i+1, i)),
			clientv3.OpPut(fmt.Sprintf("/homing/operator/%s/%04d", service, i), `{"weight":2}`))
	}
	for some := range slices.Chunk(ops, 128) {
		_, err := cli.Txn(bg).Then(some...).Commit()
		require.NoError(t, err)
	}
	for _, args := range [][]string{{"ls"}, {"ls", service}} {
		rows := e.rows(args...)
		require.Len(t, rows, servers)
		for id, r := range rows {
			require.NotNil(t, r.Operator, id)
		}
	}
	require.Contains(t, e.does("drain", "-s", service, "2400"), "of other code", "found by its id")
}

// What is a service may show at the last of its keys, pages after the first.
func TestAServiceIsKnownByTheLastOfItsRecords(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	var ops []clientv3.Op
	for i := range 2100 {
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("%s/%04d", service, i), "garbage"), clientv3.OpPut(fmt.Sprintf("other/%04d", i), "garbage"))
	}
	for some := range slices.Chunk(append(ops, clientv3.OpPut(service+"/1/deeper", "garbage")), 128) {
		_, err := cli.Txn(bg).Then(some...).Commit()
		require.NoError(t, err)
	}
	put(t, cli, service+"/z", `{"Addr":"127.0.0.1:1"}`)
	require.Len(t, e.rows("ls"), 2101)
}

func TestAnEmptyListIsSaidToBeOne(t *testing.T) {
	e := startEtcd(t)
	for want, args := range map[string][]string{
		`"gmae" has no servers`:                          {"ls", "gmae"},
		`etcd has no servers`:                            {"ls"},
		`"game" in the namespace "prod/" has no servers`: {"--namespace", "prod/", "ls", service},
	} {
		status, _, stderr := e.operate(args...)
		require.Zero(t, status)
		require.Equal(t, "homing: "+want+"\n", stderr)
	}
	_, stdout, stderr := e.operate("ls", "gmae", "-o", "json")
	require.Equal(t, "[]\n", stdout)
	require.Empty(t, stderr)
	var errs output
	e.watch(io.Discard, &errs, "gmae")
	soon(t, errs.has(`"gmae" has no servers yet`), "why nothing is shown")
}

// The other end of a pipe that has seen enough.
type closedPipe struct{}

func (closedPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestOutputThatCannotBeWrittenIsSaid(t *testing.T) {
	e := startEtcd(t)
	at(t, e.newClient(), "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	for _, args := range [][]string{{"ls"}, {"ls", "-o", "json"}, {"watch", service}, {"check"}, {"where", "-s", service, "k"}, {"drain", "game/a"}} {
		var errs bytes.Buffer
		status := operator.Run(bg, append([]string{"homing", "--endpoints", e.client.Host}, args...), closedPipe{}, &errs)
		require.Equal(t, 2, status, args)
		require.Contains(t, errs.String(), "closed pipe", args)
	}
}
