package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

// The record has one writer, the registration, and the operator's word has another. So the
// server drains while either says so, in whatever order they speak.
func TestNeitherDrainUndoesTheOther(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	type step struct {
		do   string
		want string // state in homing ls
	}
	for name, steps := range map[string][]step{
		"the server, the operator, the operator lifts": {
			{"server drains", "draining"}, {"operator drains", "draining (operator)"},
			{"operator lifts", "draining"}, {"server lifts", "registered"}},
		"the server, the operator, the server lifts": {
			{"server drains", "draining"}, {"operator drains", "draining (operator)"},
			{"server lifts", "draining (operator)"}, {"operator lifts", "registered"}},
		"the operator, the server, the operator lifts": {
			{"operator drains", "draining (operator)"}, {"server drains", "draining (operator)"},
			{"operator lifts", "draining"}, {"server lifts", "registered"}},
		"the operator, the server, the server lifts": {
			{"operator drains", "draining (operator)"}, {"server drains", "draining (operator)"},
			{"server lifts", "draining (operator)"}, {"operator lifts", "registered"}},
		"the operator, the server changes something else": {
			{"operator drains", "draining (operator)"}, {"server changes its zone", "draining (operator)"},
			{"operator lifts", "registered"}},
		"the operator twice": {
			{"operator drains", "draining (operator)"}, {"operator drains", "draining (operator)"},
			{"operator lifts", "registered"}, {"operator lifts", "registered"}},
		"the operator weighs, too": {
			{"operator drains", "draining (operator)"}, {"operator weighs", "draining (operator)"},
			{"operator lifts", "registered"}, {"operator weighs no more", "registered"}},
	} {
		t.Run(name, func(t *testing.T) {
			reg := at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a", Weight: 3})
			update := func(change func(*endpointsmeta.Meta)) { require.NoError(t, reg.Update(bg, change)) }
			for _, s := range steps {
				switch s.do {
				case "server drains":
					require.NoError(t, reg.Drain(bg))
				case "server lifts":
					update(func(m *endpointsmeta.Meta) { m.Draining = false })
				case "server changes its zone":
					update(func(m *endpointsmeta.Meta) { m.Zone = "eu-2" })
				case "operator drains":
					e.does("drain", "game/a")
				case "operator lifts":
					e.does("undrain", "game/a")
				case "operator weighs":
					e.does("weight", "game/a", "7")
					require.EqualValues(t, 7, e.rows("ls", service)["a"].Weight)
				case "operator weighs no more":
					e.does("weight", "game/a", "--reset")
					require.EqualValues(t, 3, e.rows("ls", service)["a"].Weight)
				}
				r := e.rows("ls", service)["a"]
				require.Equal(t, s.want, r.State, s.do)
				require.Equal(t, s.want != "registered", r.Draining, s.do)
				want := registry.Registered
				if r.Draining {
					want = registry.Draining
				}
				soon(t, func() bool { return reg.State() == want }, "the server knows")
			}
			require.NoError(t, reg.Close(bg))
			left, err := cli.Get(bg, "/homing/", clientv3.WithPrefix())
			require.NoError(t, err)
			require.Empty(t, left.Kvs, "what says nothing is not kept")
		})
	}
}

func TestTheServerIsToldWhatItsOperatorSays(t *testing.T) {
	e := startEtcd(t)
	var mu sync.Mutex
	var states []registry.State
	reg := at(t, e.newClient(), "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithNotify(func(s registry.State) {
		mu.Lock()
		defer mu.Unlock()
		states = append(states, s)
	}))
	e.does("drain", "game/a")
	require.True(t, reg.Meta().Draining)
	e.does("undrain", "game/a")
	require.NoError(t, reg.Close(bg))
	soon(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(states) == 4
	}, "all is told")
	require.Equal(t, []registry.State{registry.Registered, registry.Draining, registry.Registered, registry.Closed}, states)
}

// Clients take it as any drain: calls without affinity go elsewhere, and who was there
// comes back.
func TestADrainByTheOperatorReachesClients(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	for _, id := range []string{"a", "b"} {
		register(t, cli, startServer(t, id))
	}
	c := newChannel(t, cli, stickybalancer.Config{})
	c.sees("a", "b")
	e.does("drain", "game/a")
	c.sees("b")
	c.reaches("a", affinity.With(bg, "a"))
	e.does("undrain", "game/a")
	c.sees("a", "b")
}

// A server that starts is never seen without what its operator says, not for a moment.
func TestTheOperatorsWordOutlivesARestart(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	reg := at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	e.does("drain", "game/a")
	e.does("weight", "game/a", "7")
	require.NoError(t, reg.Close(bg))
	ctx, cancel := context.WithCancel(bg)
	defer cancel()
	history := cli.Watch(ctx, service+"/a")

	reg = at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.Equal(t, registry.Draining, reg.State())
	first := string((<-history).Events[0].Kv.Value)
	require.Contains(t, first, `"draining":true`)
	require.Contains(t, first, `"weight":7`)
	e.does("undrain", "game/a")
	require.Equal(t, registry.Registered, reg.State())
	require.EqualValues(t, 7, listed(t, cli)["a"].Meta.Weight)
}

func TestTheOperatorsWordStandsWhateverTakesTheRecordAway(t *testing.T) {
	for name, lose := range map[string]func(e *etcd, cli *clientv3.Client){
		"the lease": func(e *etcd, cli *clientv3.Client) {
			kv, err := cli.Get(bg, service+"/a")
			require.NoError(e.t, err)
			_, err = cli.Revoke(bg, clientv3.LeaseID(kv.Kvs[0].Lease))
			require.NoError(e.t, err)
		},
		"a hand": func(e *etcd, cli *clientv3.Client) {
			put(e.t, cli, service+"/a", `{"Addr":"127.0.0.1:1","Metadata":{"id":"a"}}`)
		},
		"a restart of etcd": func(e *etcd, cli *clientv3.Client) {
			e.stop()
			e.start()
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := startEtcd(t)
			cli := e.newClient()
			reg := at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(shortTTL))
			e.does("drain", "game/a")
			lose(e, cli)
			back := func(state registry.State) func() bool {
				return func() bool {
					ctx, cancel := context.WithTimeout(bg, time.Second)
					defer cancel()
					list, err := registry.List(ctx, cli, service)
					return err == nil && len(list) == 1 && list[0].Meta.Draining == (state == registry.Draining) && reg.State() == state
				}
			}
			within(t, 20*time.Second, back(registry.Draining), "it is back, and drains")
			e.does("undrain", "game/a", "--wait", "15s")
			within(t, 20*time.Second, back(registry.Registered), "lifting it works")
		})
	}
}

// An outage, and words that are spoken after it, or that the server could not hear.
func TestTheOperatorIsHeardAfterAnOutageOfEtcd(t *testing.T) {
	for name, wipe := range map[string]bool{"that kept its data": false, "that lost its data": true} {
		t.Run(name, func(t *testing.T) {
			e := startEtcd(t)
			cli := e.newClient()
			for range 50 {
				put(t, cli, "unrelated", "x")
			}
			at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(shortTTL))
			e.stop()
			if wipe {
				e.wipe()
			}
			e.start()
			within(t, 20*time.Second, func() bool { return len(listed(t, e.newClient())) == 1 }, "it is back")
			e.does("drain", "game/a", "--wait", "20s")
			e.does("undrain", "game/a", "--wait", "20s")
		})
	}
}

// What etcd has lost, the server does not make up: nobody could lift it.
func TestAWipedEtcdHasForgottenTheOperatorsWord(t *testing.T) {
	e := startEtcd(t)
	reg := at(t, e.newClient(), "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(shortTTL))
	e.does("drain", "game/a")
	e.stop()
	e.wipe()
	e.start()
	within(t, 20*time.Second, func() bool { return reg.State() == registry.Registered }, "it takes new work")
}

// A compaction ends watches that lag, and a member that is gone takes them with it.
func TestTheOperatorIsHeardAfterACompaction(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	for range 20 {
		put(t, cli, "unrelated", "x")
	}
	now, err := cli.Get(bg, "unrelated")
	require.NoError(t, err)
	_, err = cli.Compact(bg, now.Header.Revision)
	require.NoError(t, err)
	e.stop()
	e.start()
	e.does("drain", "game/a", "--wait", "20s")
}

// deafWatcher makes watches of one key that never tell of anything.
type deafWatcher struct {
	clientv3.Watcher
	key string
}

func (w deafWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	if key != w.key {
		return w.Watcher.Watch(ctx, key, opts...)
	}
	never := make(chan clientv3.WatchResponse)
	context.AfterFunc(ctx, func() { close(never) })
	return never
}

func TestTheOperatorIsHeardWhenTheWatchIsDeaf(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	cli.Watcher = deafWatcher{cli.Watcher, "/homing/operator/game/a"}
	at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(shortTTL))
	e.does("drain", "game/a", "--wait", "10s")
}

// Each registration of a fleet asks etcd for its operator's word, so it asks seldom.
func TestAtRestTheOperatorsWordIsSeldomReadAgain(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	var records, intents atomic.Int64
	cli.KV = &hookKV{KV: cli.KV, get: func(_ context.Context, op clientv3.Op) error {
		if string(op.KeyBytes()) == service+"/a" {
			records.Add(1)
		} else {
			intents.Add(1)
		}
		return nil
	}}
	at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(shortTTL))
	require.EqualValues(t, 1, intents.Load(), "when it starts")
	soon(t, func() bool { return records.Load() >= 13 }, "it looks at its record")
	require.LessOrEqual(t, intents.Load(), 1+records.Load()/4)
}

func TestAnOperatorsWordThatMakesNoSenseCountsAsNone(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	put(t, cli, "/homing/operator/game/a", "drain!")
	reg := at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.Equal(t, registry.Registered, reg.State())
	e.does("drain", "game/a")
	put(t, cli, "/homing/operator/game/a", "drain!")
	soon(t, func() bool { return reg.State() == registry.Registered }, "it counts as none")
}

func TestTheCommandSaysWhenTheServerDoesNotHeed(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	// A registration whose process has died.
	put(t, cli, service+"/a", `{"Addr":"127.0.0.1:1","Metadata":{"id":"a","incarnation":7}}`)
	status, stdout, stderr := e.operate("drain", "game/a", "--wait", "200ms")
	require.Equal(t, 1, status)
	require.Empty(t, stdout)
	require.Contains(t, stderr, "homing: game/a has not heeded it in 200ms: ")
	require.Equal(t, "registered (operator not heeded)", e.rows("ls", service)["a"].State)
	require.Contains(t, e.does("drain", "game/a", "--wait", "0s"), "does not wait")
	require.Contains(t, e.does("undrain", "game/a", "--wait", "200ms"), "takes new work", "it never heard of it, so nothing is to be heeded")
}

// A server that is older than the operator's word, or whose role ends at its own service:
// it registers and lives as before.
func TestAServerThatMayNotReadTheOperatorsWordGoesOnWithout(t *testing.T) {
	e, root := etcdWithUsers(t, map[string][]string{"server": {"game/"}})
	cli := e.clientOf("server")
	reg := at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(shortTTL))
	status, _, stderr := e.operate("--user", "root:pw", "drain", "game/a", "--wait", "300ms")
	require.Equal(t, 1, status)
	require.Contains(t, stderr, `its etcd user may not read "/homing/operator/game/a"`)
	require.Equal(t, registry.Registered, reg.State())

	// It may from now on, and asks again at the latest when its record was lost.
	_, err := root.RoleGrantPermission(bg, "server", "/homing/operator/game/", clientv3.GetPrefixRangeEnd("/homing/operator/game/"),
		clientv3.PermissionType(clientv3.PermRead))
	require.NoError(t, err)
	_, err = root.Delete(bg, service+"/a")
	require.NoError(t, err)
	soon(t, func() bool { return reg.State() == registry.Draining }, "it heeds it")
}

// An operator needs no right to write records: theirs are the servers'.
func TestAnOperatorNeedsToWriteItsOwnKeysOnly(t *testing.T) {
	e, root := etcdWithUsers(t, map[string][]string{"operator": {"/homing/operator/"}, "reader": {}})
	for _, user := range []string{"operator", "reader"} {
		_, err := root.RoleGrantPermission(bg, user, "game/", clientv3.GetPrefixRangeEnd("game/"), clientv3.PermissionType(clientv3.PermRead))
		require.NoError(t, err)
	}
	at(t, root, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	e.does("--user", "operator:pw", "drain", "game/a")
	require.Equal(t, "draining (operator)", e.rows("--user", "operator:pw", "ls", service)["a"].State)

	status, stdout, stderr := e.operate("--user", "reader:pw", "ls", service)
	require.Zero(t, status, "who may not read the word sees the servers all the same")
	require.Contains(t, stdout, "draining")
	require.Equal(t, "homing: the etcd user \"reader\" may not read /homing/operator/game/: what operators say is not shown\n", stderr)
	status, _, stderr = e.operate("--user", "reader:pw", "undrain", "game/a")
	require.Equal(t, 2, status)
	require.Contains(t, stderr, `the etcd user "reader" may not`)
	status, _, stderr = e.operate("--user", "operator:pw", "ls")
	require.Equal(t, 2, status)
	require.Contains(t, stderr, "name a service")
}

// Hand-written registrations often begin their keys so, and keep them with homing.
func TestAServiceMayBeginWithASlash(t *testing.T) {
	e := startEtcd(t)
	reg, err := registry.Register(bg, e.newClient(), "/naming/game", "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.NoError(t, err)
	defer reg.Close(bg)
	e.does("drain", "/naming/game/a")
	require.Equal(t, registry.Draining, reg.State())
	require.Equal(t, "draining (operator)", e.rows("ls", "/naming/game")["a"].State)
	require.Equal(t, "draining (operator)", e.rows("ls")["a"].State)
	e.does("undrain", "-s", "/naming/game", "a")
	require.Equal(t, "services: 1, servers: 1, findings: 0\n", e.does("check"))
}

// The command's own tests show that it changes nobody else's keys.
func TestTheOperatorsKeysAreNoServersOfAnyService(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	for _, s := range []string{"homing", "homing/operator", "homing/operator/game"} {
		ctx, cancel := context.WithTimeout(bg, 10*time.Second)
		reg, err := registry.Register(ctx, cli, s, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
		cancel()
		require.NoError(t, err)
		defer reg.Close(bg)
		e.does("drain", s+"/a")
		list, err := registry.List(bg, cli, s)
		require.NoError(t, err)
		require.Len(t, list, 1)
		require.Equal(t, "127.0.0.1:1", list[0].Addr)
	}
	require.Len(t, e.rows("ls", "homing"), 1)
}

// writeFile returns the path of a file of the test's.
func writeFile(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, content, 0o600))
	return path
}

// A server that homing registers is replaced, under its id, by one of other code: the word
// can still be lifted, and does not wait for the next that heeds it.
func TestAWordIsLiftedWhoeverRegistersTheServerNow(t *testing.T) {
	for name, record := range map[string]string{
		"other code":     `{"Addr":"127.0.0.1:1","Metadata":{"id":"a"}}`,
		"a bare address": `127.0.0.1:1`,
	} {
		t.Run(name, func(t *testing.T) {
			e := startEtcd(t)
			cli := e.newClient()
			reg := at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
			e.does("drain", "game/a")
			e.does("weight", "game/a", "7")
			require.NoError(t, reg.Close(bg))
			put(t, cli, service+"/a", record)
			e.does("undrain", "game/a")
			e.does("weight", "game/a", "--reset")
			left, err := cli.Get(bg, "/homing/", clientv3.WithPrefix())
			require.NoError(t, err)
			require.Empty(t, left.Kvs)
			now, err := cli.Get(bg, service+"/a")
			require.NoError(t, err)
			require.Equal(t, record, string(now.Kvs[0].Value))
		})
	}
}

// Somebody else speaks of the same server while its operator waits to be heeded.
func TestWhoIsOvertakenIsHeededAllTheSame(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	put(t, cli, service+"/a", `{"Addr":"127.0.0.1:1","Metadata":{"id":"a","incarnation":7}}`)
	speak := func(intent string, waits ...string) (status int, stdout, stderr string) {
		done := make(chan struct{})
		before, err := cli.Get(bg, "/homing/operator/game/a")
		require.NoError(t, err)
		go func() {
			defer close(done)
			status, stdout, stderr = e.operate(append(waits, "--wait", "5s")...)
		}()
		soon(t, func() bool {
			now, err := cli.Get(bg, "/homing/operator/game/a")
			return err == nil && (now.Count != before.Count || now.Count > 0 && now.Kvs[0].ModRevision > before.Kvs[0].ModRevision)
		}, "it is said")
		said, err := cli.Put(bg, "/homing/operator/game/a", intent)
		require.NoError(t, err)
		put(t, cli, service+"/a", fmt.Sprintf(`{"Addr":"127.0.0.1:1","Metadata":{"id":"a","incarnation":7,"intent":%d}}`, said.Header.Revision))
		<-done
		return status, stdout, stderr
	}
	status, stdout, stderr := speak(`{"draining":true,"weight":3}`, "drain", "game/a")
	require.Zero(t, status, stderr)
	require.Equal(t, "a drains\n", stdout)
	status, stdout, stderr = speak(`{"draining":true}`, "undrain", "game/a")
	require.Equal(t, 1, status, stdout)
	require.Contains(t, stderr, "somebody else")
}

func TestWhatIsSaidIsAnsweredInJSON(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	one := func(args ...string) (r row) {
		require.NoError(t, json.Unmarshal([]byte(e.does(append(args, "-o", "json")...)), &r))
		return r
	}
	gone := one("undrain", "game/a")
	require.Equal(t, row{Service: service, ID: "a", State: "not registered", Key: "game/a"}, gone)
	at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.True(t, one("drain", "game/a").Operator.Heeded)
	put(t, cli, service+"/hung", `{"Addr":"127.0.0.1:2","Metadata":{"id":"hung","incarnation":7}}`)
	told := one("weight", "game/hung", "3", "--wait", "0s")
	require.NotNil(t, told.Operator, "what it was just told")
	require.EqualValues(t, 3, told.Operator.Weight)
	require.False(t, told.Operator.Heeded)
}

// It would be one more write, which all clients read, for each server that starts.
func TestAServerThatStartsWritesOnceWhatItsOperatorSays(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	put(t, cli, "/homing/operator/game/a", `{"draining":true}`)
	reg := at(t, cli, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	time.Sleep(300 * time.Millisecond)
	now, err := cli.Get(bg, service+"/a")
	require.NoError(t, err)
	require.EqualValues(t, 1, now.Kvs[0].Version)
	require.Equal(t, registry.Draining, reg.State())
}

// Operators speak while servers update, lose their records, come and go: nothing comes back
// after Close, and nothing is left running.
func TestNothingOutlivesCloseWhileOperatorsSpeak(t *testing.T) {
	e := startEtcd(t)
	cli := e.newClient()
	speaker := e.newClient()
	round := func(n int) {
		reg, err := registry.Register(bg, cli, service, "127.0.0.1:1", endpointsmeta.Meta{ID: "a"}, registry.WithTTL(shortTTL))
		require.NoError(t, err)
		var speaking sync.WaitGroup
		ctx, cancel := context.WithCancel(bg)
		speaking.Go(func() {
			for i := 1; ctx.Err() == nil; i++ {
				_, _ = speaker.Put(ctx, "/homing/operator/game/a", fmt.Sprintf(`{"weight":%d}`, i))
			}
		})
		speaking.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				_ = reg.Update(ctx, func(m *endpointsmeta.Meta) { m.Zone = fmt.Sprint(i) })
				_ = reg.Meta()
			}
		})
		speaking.Go(func() {
			for sleep := time.Duration(n) * 3 * time.Millisecond; ctx.Err() == nil; time.Sleep(sleep + time.Millisecond) {
				_, _ = speaker.Delete(ctx, service+"/a")
			}
		})
		time.Sleep(time.Duration(20+10*n) * time.Millisecond)
		require.NoError(t, reg.Close(bg))
		cancel()
		speaking.Wait()
		now, err := speaker.Get(bg, service+"/a")
		require.NoError(t, err)
		require.Empty(t, now.Kvs)
	}
	round(0)
	before := runtime.NumGoroutine()
	for n := range 10 {
		round(n)
	}
	soon(t, func() bool { return runtime.NumGoroutine() <= before+2 }, "nothing is left running")
}
