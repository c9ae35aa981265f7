package registry

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/homing-grpc/homing/endpointsmeta"
)

var recordTable = []struct {
	value string
	want  Instance
	err   string
}{
	{value: `{"Op":0,"Addr":"h:1","Metadata":null}`, want: Instance{ID: "h:1", Addr: "h:1", Key: "k"}},
	{value: `{"Addr":"h:1","Metadata":"a"}`, want: Instance{ID: "a", Addr: "h:1", Meta: endpointsmeta.Meta{ID: "a"}, Key: "k"}},
	{value: `{"Addr":"h:1","Metadata":{"id":"a","draining":true}}`,
		want: Instance{ID: "a", Addr: "h:1", Meta: endpointsmeta.Meta{ID: "a", Draining: true}, Key: "k"}},
	{value: ``, err: "JSON"},
	{value: `h:1`, err: "JSON"},
	{value: `[]`, err: "JSON"},
	{value: `null`, err: "Addr"},
	{value: `{}`, err: "Addr"},
	{value: `{"Addr":""}`, err: "Addr"},
	{value: `{"Addr":7}`, err: "JSON"},
	{value: `{"Addr":"h:1","Metadata":7}`, err: "metadata"},
	{value: `{"Addr":"h:1","Metadata":{"id":7}}`, err: "id must be"},
}

func TestDecodeRecord(t *testing.T) {
	for _, c := range recordTable {
		t.Run(c.value, func(t *testing.T) {
			got, err := decodeRecord("k", []byte(c.value), false)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

var plainTable = []struct {
	value string
	ok    bool
}{
	{"10.0.0.7:7000", true},
	{"game-1.game.default.svc.cluster.local:65535", true},
	{"[::1]:7000", true},
	{"[fe80::1%eth0]:7000", true},
	{"localhost:1", true},
	{"", false},
	{":7000", false},
	{"10.0.0.7", false},
	{"10.0.0.7:", false},
	{"10.0.0.7:0", false},
	{"10.0.0.7:65536", false},
	{"10.0.0.7:http", false},
	{"10.0.0.7:+7", false},
	{"::1:7000", false},
	{"http://10.0.0.7:7000", false},
	{"10.0.0.7:7000\n", false},
	{" 10.0.0.7:7000", false},
	{"a b:7000", false},
	{"10.0.0.7:7000,10.0.0.8:7000", false},
	{"h\xff:7000", false},
	{`"10.0.0.7:7000"`, false},
	{`{"a":1}`, false},
	{strings.Repeat("h", 256) + ":1", false},
}

func TestAPlainAddressIsAServerWhoseIDItIs(t *testing.T) {
	for _, c := range plainTable {
		t.Run(c.value, func(t *testing.T) {
			got, err := decodeRecord("k", []byte(c.value), true)
			if !c.ok {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, Instance{ID: c.value, Addr: c.value, Key: "k"}, got)
		})
	}
}

func TestAPlainAddressIsBadWithoutTheOption(t *testing.T) {
	_, err := decodeRecord("k", []byte("10.0.0.7:7000"), false)
	require.ErrorContains(t, err, "WithPlainAddresses")
	_, err = decodeRecord("k", []byte("10.0.0.7"), false)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "WithPlainAddresses")
}

func TestJSONIsReadWithPlainAddressesToo(t *testing.T) {
	for _, c := range recordTable {
		if c.err != "" || c.value == "" {
			continue
		}
		got, err := decodeRecord("k", []byte(c.value), true)
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
}

func TestARecordWithoutAnIDYieldsToOneOfItsAddressThatHasOne(t *testing.T) {
	bare := func(key, addr string) Instance { return Instance{ID: addr, Addr: addr, Key: key} }
	named := Instance{ID: "b", Addr: "h:1", Meta: endpointsmeta.Meta{ID: "b"}, Key: "k1"}
	list := []Instance{bare("k2", "h:1"), bare("k3", "h:2"), bare("k4", "h:2"), named}
	before := slices.Clone(list)
	require.Equal(t, []Instance{bare("k3", "h:2"), named}, withoutShadows(list))
	require.Equal(t, before, list, "which others may hold")
}

func FuzzDecodeRecord(f *testing.F) {
	for _, c := range recordTable {
		f.Add([]byte(c.value))
	}
	for _, c := range plainTable {
		f.Add([]byte(c.value))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		i, err := decodeRecord("k", value, false)
		if err == nil && (i.Addr == "" || i.ID == "") {
			t.Fatalf("%q is no server: %+v", value, i)
		}
		p, plainErr := decodeRecord("k", value, true)
		switch {
		case err == nil && (plainErr != nil || !p.equal(&i)):
			t.Fatalf("%q is %+v, and with plain addresses %+v, %v", value, i, p, plainErr)
		case err != nil && plainErr == nil:
			host, port, err := net.SplitHostPort(p.Addr)
			if err != nil || host == "" || port == "" || p.Addr != string(value) || p.ID != p.Addr {
				t.Fatalf("%q is no address: %+v", value, p)
			}
		}
	})
}
