package registry

import (
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
			got, err := decodeRecord("k", []byte(c.value))
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func FuzzDecodeRecord(f *testing.F) {
	for _, c := range recordTable {
		f.Add([]byte(c.value))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		i, err := decodeRecord("k", value)
		if err == nil && (i.Addr == "" || i.ID == "") {
			t.Fatalf("%q is no server: %+v", value, i)
		}
	})
}
