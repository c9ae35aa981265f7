package operator

import (
	"context"
	"encoding/json"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"

	"github.com/homing-grpc/homing/internal/records"
)

// What needs an etcd is tested in the module e2e.

func TestAWrongCallIsOneLineThatNamesTheValue(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"bogus"}, `got "bogus"`},
		{[]string{"ls", "a", "b"}, "got 2 arguments"},
		{[]string{"ls", "game/"}, `got "game/"`},
		{[]string{"ls", "-o", "xml"}, `got "xml"`},
		{[]string{"--dial-timeout", "-1s", "ls"}, "got -1s"},
		{[]string{"--endpoints", " ", "ls"}, "endpoints must be"},
		{[]string{"--user", "root", "ls"}, `got user "root"`},
		{[]string{"--user", ":pw", "ls"}, `got user ""`},
		{[]string{"watch"}, "service must be named"},
		{[]string{"drain"}, "got 0 arguments"},
		{[]string{"drain", "a"}, `service of "a" must be named`},
		{[]string{"drain", "game/"}, `got "game/"`},
		{[]string{"drain", "/a"}, "must be named"},
		{[]string{"ls", "/"}, `got "/"`},
		{[]string{"ls", "/homing/operator/game"}, "must not be where operators' words are"},
		{[]string{"drain", "game/a", "--wait", "-1s"}, "got -1s"},
		{[]string{"weight", "game/a"}, "got 1 arguments"},
		{[]string{"weight", "game/a", "0"}, `got "0"`},
		{[]string{"weight", "game/a", "4294967296"}, `got "4294967296"`},
		{[]string{"weight", "game/a", "3", "--reset"}, "got 2 arguments"},
		{[]string{"where", "k"}, "service must be named"},
		{[]string{"where", "game", "k"}, "homing where -s SERVICE KEY, got 2 arguments"},
		{[]string{"where", "help"}, "service must be named"},
		{[]string{"drain", "h"}, `service of "h" must be named`},
		{[]string{"where", "-s", "game", ""}, "key must not be empty"},
	} {
		var errs line
		require.Equal(t, statusNotDone, Run(t.Context(), append([]string{"homing"}, tc.args...), io.Discard, &errs), tc.args)
		require.Regexp(t, `^homing: [^\n]+\n$`, string(errs), tc.args)
		require.Contains(t, string(errs), tc.want, tc.args)
	}
}

type line []byte

func (l *line) Write(p []byte) (int, error) {
	*l = append(*l, p...)
	return len(p), nil
}

func TestAUserIsNamedAsEtcdctlDoes(t *testing.T) {
	for _, tc := range []struct{ user, password, name, secret string }{
		{"", "pw", "", ""},
		{"root:pw", "", "root", "pw"},
		{"root:p:w", "", "root", "p:w"},
		{"root", "pw", "root", "pw"},
		{"a:b", "pw", "a:b", "pw"},
	} {
		name, secret, err := user(tc.user, tc.password)
		require.NoError(t, err)
		require.Equal(t, tc.name+" "+tc.secret, name+" "+secret)
	}
}

func TestARecordIsChangedInItsMetadataAlone(t *testing.T) {
	drain := func(m map[string]json.RawMessage) { m["draining"] = json.RawMessage("true") }
	for value, want := range map[string]string{
		`{"Addr":"h:1"}`:                             `{"Addr":"h:1","Metadata":{"draining":true}}`,
		`{"Op":0,"Addr":"h:1","Metadata":null}`:      `{"Op":0,"Addr":"h:1","Metadata":{"draining":true}}`,
		`{"Addr":"h:1","Metadata":"a"}`:              `{"Addr":"h:1","Metadata":{"id":"a","draining":true}}`,
		`{"Addr":"h:1","Metadata":""}`:               `{"Addr":"h:1","Metadata":{"draining":true}}`,
		`{"Addr":"h:1","Metadata":{"id":"a","x":9}}`: `{"Addr":"h:1","Metadata":{"id":"a","x":9,"draining":true}}`,
	} {
		got, err := changed([]byte(value), drain)
		require.NoError(t, err, value)
		require.JSONEq(t, want, string(got))
		r, err := records.Decode(got, false)
		require.NoError(t, err)
		require.True(t, r.Meta.Draining)
	}
	for _, value := range []string{``, `7`, `{}`, `{"Addr":"h:1","Metadata":7}`} {
		_, err := changed([]byte(value), drain)
		require.Error(t, err, value)
	}
}

func FuzzChanged(f *testing.F) {
	f.Add([]byte(`{"Addr":"h:1","Metadata":{"id":"a","x":9}}`))
	f.Add([]byte(`{"addr":"h:1","metadata":"a"}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		before, err := records.Decode(value, false)
		if err != nil {
			return
		}
		got, err := changed(value, func(m map[string]json.RawMessage) { m["draining"] = json.RawMessage("true") })
		if err != nil {
			return
		}
		after, err := records.Decode(got, false)
		if err != nil {
			t.Fatalf("%q became %q: %v", value, got, err)
		}
		before.Meta.Draining = true
		if before.Addr != after.Addr || !before.Meta.Equal(after.Meta) {
			t.Fatalf("%q became %q", value, got)
		}
	})
}

func TestAnAgeIsInItsGreatestUnit(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 59 * time.Second: "59s", time.Minute: "1m", 59 * time.Minute: "59m", 47 * time.Hour: "47h", 48 * time.Hour: "2d",
	} {
		require.Equal(t, want, short(d))
	}
}

func TestWhatIsInEtcdDoesNotSteerTheTerminal(t *testing.T) {
	require.Equal(t, `"\x1b[2J"`, printable("\x1b[2J"))
	require.Equal(t, `"a\nb"`, printable("a\nb"))
	require.Equal(t, `"\x9b2J"`, printable("\x9b2J"))
	require.Equal(t, "größe-1", printable("größe-1"))
}

// A word that was said a moment ago is neither forgotten nor unheeded.
func TestAFreshIntentIsNoFinding(t *testing.T) {
	now := time.Now()
	value, err := json.Marshal(endpoints.Endpoint{Addr: "h:1", Metadata: map[string]any{"id": "a", "incarnation": 7}})
	require.NoError(t, err)
	for ago, want := range map[time.Duration][]string{
		time.Second:     nil,
		2 * time.Minute: {"unheeded-intent"},
		2 * time.Hour:   {"unheeded-intent", "stale-intent"},
	} {
		f := &fleet{intents: map[string]intent{}}
		f.servers = []server{read("game", "a", &mvccpb.KeyValue{Key: []byte("game/a"), Value: value, Lease: 1}, false)}
		said := records.Intent{Draining: true, Since: now.Add(-ago)}
		f.intents["game/gone"] = intent{Intent: said, service: "game", id: "gone", revision: 9}
		f.servers[0].intent = &intent{Intent: said, service: "game", id: "a", revision: 9}
		var got []string
		for _, x := range f.findings(now) {
			got = append(got, x.Problem)
		}
		require.Equal(t, want, got, ago)
	}
}

// deadLease is of an etcd that has gone away.
type deadLease struct {
	clientv3.Lease
	asked atomic.Int64
}

func (l *deadLease) TimeToLive(ctx context.Context, _ clientv3.LeaseID, _ ...clientv3.LeaseOption) (*clientv3.LeaseTimeToLiveResponse, error) {
	l.asked.Add(1)
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestAnEtcdThatDiesIsNotAskedForEachLease(t *testing.T) {
	leases := &deadLease{}
	c := &conn{Client: clientv3.NewCtxClient(t.Context()), timeout: 20 * time.Millisecond}
	c.Lease = leases
	f := &fleet{}
	for i := range 1000 {
		f.servers = append(f.servers, server{lease: clientv3.LeaseID(i + 1)})
	}
	_, err := c.leases(t.Context(), f)
	require.ErrorContains(t, err, "no answer from etcd")
	require.Less(t, leases.asked.Load(), int64(3*leasesAtOnce))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.leases(ctx, f)
	require.Error(t, err)
}

// With ETCDCTL_PASSWORD in the environment, the name is all of --user.
func TestAPasswordIsInNoMessage(t *testing.T) {
	c := &conn{Client: clientv3.NewCtxClient(t.Context()), timeout: time.Second}
	c.Username = "root:secret"
	require.NotContains(t, c.explain(rpctypes.ErrPermissionDenied, "reading").Error(), "secret")
	require.Equal(t, "root", shown("root"))
}

func TestARecordThatClientsSkipForItsKeyIsBad(t *testing.T) {
	f := &fleet{}
	f.servers = []server{read("game", "\xff", &mvccpb.KeyValue{Key: []byte("game/\xff"), Value: []byte(`{"Addr":"h:1"}`), Lease: 1}, false)}
	require.Equal(t, "bad-record", f.findings(time.Now())[0].Problem)
}

// revisionKV is an etcd at revision 42 with a server, which notes the revisions asked for.
type revisionKV struct {
	clientv3.KV
	asked     []int64
	compacted int64
}

func (kv *revisionKV) Get(_ context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	op := clientv3.OpGet(key, opts...)
	kv.asked = append(kv.asked, op.Rev())
	if op.Rev() > 0 && op.Rev() < kv.compacted {
		return nil, rpctypes.ErrCompacted
	}
	resp := &clientv3.GetResponse{Header: &pb.ResponseHeader{Revision: 42 + int64(len(kv.asked))}}
	if key == "game/" {
		resp.Kvs, resp.More = []*mvccpb.KeyValue{{Key: []byte("game/a"), Value: []byte(`{"Addr":"h:1"}`)}}, true
	}
	return resp, nil
}

// Or else a server would seem not to heed what was said, and heeded, between two reads.
func TestServersAndWordsAreReadAsOfOneMoment(t *testing.T) {
	kv := &revisionKV{}
	c := &conn{Client: clientv3.NewCtxClient(t.Context()), timeout: time.Second}
	c.KV = kv
	f, err := c.fleetOf(t.Context(), "game", io.Discard)
	require.NoError(t, err)
	require.Len(t, f.servers, 1)
	require.Equal(t, []int64{0, 43, 43}, kv.asked)
}

func TestACompactionBetweenTwoPagesIsReadPast(t *testing.T) {
	kv := &revisionKV{compacted: 44}
	c := &conn{Client: clientv3.NewCtxClient(t.Context()), timeout: time.Second}
	c.KV = kv
	f, err := c.fleetOf(t.Context(), "game", io.Discard)
	require.NoError(t, err)
	require.Len(t, f.servers, 1)
	kv.compacted = 1 << 40
	_, err = c.fleetOf(t.Context(), "game", io.Discard)
	require.ErrorIs(t, err, rpctypes.ErrCompacted, "and not for ever")
}

// emptyKV is an etcd without a key.
type emptyKV struct{ clientv3.KV }

func (emptyKV) Get(context.Context, string, ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	return &clientv3.GetResponse{Header: &pb.ResponseHeader{Revision: 42}}, nil
}

// It left while it was waited for, which is neither a hang nor a lack of rights.
func TestAServerThatLeavesMeanwhileIsSaidToBeGone(t *testing.T) {
	c := &conn{Client: clientv3.NewCtxClient(t.Context()), timeout: time.Second}
	c.KV = emptyKV{}
	for says, w := range map[string]word{
		"The word stands": {intent: func(i *records.Intent) { i.Draining = true }},
		"What was said of it is lifted all the same": {intent: func(i *records.Intent) { i.Draining = false }, lifts: true},
	} {
		_, err := c.await(t.Context(), &server{service: "game", id: "a", key: "game/a"}, w, 10*time.Millisecond)
		require.EqualError(t, err, "game/a has not heeded it in 10ms: it is not registered any more. "+says)
		require.ErrorAs(t, err, new(unheeded))
	}
}

// ownedKV is an etcd in which a server of homing's registry has taken the place of another.
type ownedKV struct{ clientv3.KV }

func (ownedKV) Get(context.Context, string, ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	value := []byte(`{"Addr":"h:1","Metadata":{"id":"a","incarnation":7}}`)
	return &clientv3.GetResponse{Kvs: []*mvccpb.KeyValue{{Key: []byte("game/a"), Value: value, ModRevision: 7}}}, nil
}

// It would put back what was changed, and nobody would know.
func TestARecordThatHasAnOwnerByNowIsNotChanged(t *testing.T) {
	c := &conn{Client: clientv3.NewCtxClient(t.Context()), timeout: time.Second}
	c.KV = ownedKV{} // it panics at a write
	_, err := c.rewrite(t.Context(), &server{service: "game", id: "a", key: "game/a"}, word{record: func(m map[string]json.RawMessage) {}})
	require.ErrorAs(t, err, new(unheeded))
	require.ErrorContains(t, err, `the record "game/a" is of a server that has started meanwhile: say it again`)
}
