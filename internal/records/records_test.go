package records

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/client/v3/naming/endpoints"

	"github.com/homing-grpc/homing/endpointsmeta"
)

func TestARecordSaysWhenItsServerStartedAndWhichIntentItHeeds(t *testing.T) {
	started := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	m := endpointsmeta.Meta{ID: "a", Incarnation: 7, Weight: 3, Labels: map[string]string{"v": "1"}}
	value, err := json.Marshal(endpoints.Endpoint{Addr: "h:1", Metadata: Metadata{m, started, 42}})
	require.NoError(t, err)
	require.JSONEq(t, `{"Addr":"h:1","Metadata":{"id":"a","incarnation":7,"weight":3,"labels":{"v":"1"},
		"started":"2026-11-21T10:00:00Z","intent":42}}`, string(value))
	r, err := Decode(value, false)
	require.NoError(t, err)
	require.Equal(t, m, r.Meta)
	require.Equal(t, started, r.Started())
	require.EqualValues(t, 42, r.Intent())
	require.True(t, r.Owned())
}

func TestARecordOfOtherCodeSaysNothingMore(t *testing.T) {
	for _, value := range []string{
		`{"Addr":"h:1"}`,
		`{"Addr":"h:1","Metadata":"a"}`,
		`{"Addr":"h:1","Metadata":{"id":"a","started":7,"intent":"x"}}`,
	} {
		r, err := Decode([]byte(value), false)
		require.NoError(t, err, value)
		require.Zero(t, r.Started(), value)
		require.Zero(t, r.Intent(), value)
		require.False(t, r.Owned(), value)
	}
}

func TestAnIntentAddsToWhatTheServerSays(t *testing.T) {
	for _, c := range []struct {
		server endpointsmeta.Meta
		intent Intent
		want   endpointsmeta.Meta
	}{
		{endpointsmeta.Meta{Weight: 3}, Intent{}, endpointsmeta.Meta{Weight: 3}},
		{endpointsmeta.Meta{Weight: 3}, Intent{Weight: 5}, endpointsmeta.Meta{Weight: 5}},
		{endpointsmeta.Meta{}, Intent{Draining: true}, endpointsmeta.Meta{Draining: true}},
		{endpointsmeta.Meta{Draining: true}, Intent{}, endpointsmeta.Meta{Draining: true}},
		{endpointsmeta.Meta{Draining: true}, Intent{Draining: true, Weight: 2}, endpointsmeta.Meta{Draining: true, Weight: 2}},
	} {
		require.Equal(t, c.want, c.intent.Apply(c.server))
	}
}

func TestABadIntentIsAnErrorThatSaysWhatIsWanted(t *testing.T) {
	for _, value := range []string{``, `null`, `[]`, `7`, `{"draining":"yes"}`, `{"weight":-1}`, `{"weight":4294967296}`} {
		_, err := DecodeIntent([]byte(value))
		require.ErrorContains(t, err, "intent must be", value)
	}
	i, err := DecodeIntent([]byte(`{"draining":true,"Weight":2}`))
	require.NoError(t, err)
	require.Equal(t, Intent{Draining: true, Weight: 2}, i)
	require.False(t, i.Empty())
	require.True(t, Intent{Since: time.Now()}.Empty())
}

func TestAnIntentKeepsWhatALaterReleaseHasSaid(t *testing.T) {
	i, err := DecodeIntent([]byte(`{"Draining":true,"zone":"eu-2","until":{"at":12345678901234567890}}`))
	require.NoError(t, err)
	i.Draining, i.Weight = false, 3
	value, err := json.Marshal(i)
	require.NoError(t, err)
	require.Equal(t, `{"until":{"at":12345678901234567890},"weight":3,"zone":"eu-2"}`, string(value))
	require.False(t, i.Unknown())
	i.Weight = 0
	require.False(t, i.Empty(), "it is not for this release to take away")
	require.True(t, i.Unknown())
}

func TestAKeyIsAServiceAndAnID(t *testing.T) {
	for key, want := range map[string][2]string{
		"game/a":       {"game", "a"},
		"game/eu/a":    {"game/eu", "a"},
		"game/[::1]:7": {"game", "[::1]:7"},
		"game":         {},
		"game/":        {},
		"/game":        {},
		"":             {},
	} {
		service, id, ok := Split(key)
		require.Equal(t, want, [2]string{service, id}, key)
		require.Equal(t, want[0] != "", ok, key)
	}
	require.Equal(t, "/homing/operator/game/eu/a", IntentKey("game/eu", "a"))
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"Addr":"h:1","Metadata":{"id":"a","started":"2026-11-21T10:00:00Z","intent":42}}`))
	f.Add([]byte(`{"draining":true,"weight":2,"since":"2026-11-21T10:00:00Z"}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		if r, err := Decode(value, true); err == nil {
			if r.Addr == "" {
				t.Fatalf("%q has no address", value)
			}
			r.Started()
			r.Intent()
		}
		_, _ = DecodeIntent(value)
	})
}
