package affinity_test

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
)

// What clients do with values that a server has sealed, and they cannot open.

// longID is a sealed id that is longer than a plain one may be.
func longID(t testing.TB) string {
	id := sealedID(t, strings.Repeat("x", 256), "s")
	require.Greater(t, len(id), 256)
	return id
}

func TestClientsCarrySealedValues(t *testing.T) {
	long := longID(t)
	var md metadata.MD
	c := start(t, watch(func(ctx context.Context) { md, _ = metadata.FromIncomingContext(ctx) }), nil, affinity.DialOptions()...)
	for _, ctx := range []context.Context{
		apply(t.Context(), id(long), key(long)),
		metadata.AppendToOutgoingContext(t.Context(), affinity.IDHeader, long, affinity.KeyHeader, long),
		metadata.AppendToOutgoingContext(apply(t.Context(), id(long)), affinity.KeyHeader, long),
	} {
		for _, sh := range shapes {
			require.NoError(t, sh.call(ctx, c).err, sh.name)
			require.Equal(t, []string{long}, md[affinity.IDHeader], sh.name)
			require.Equal(t, []string{long}, md[affinity.KeyHeader], sh.name)
		}
	}
}

func TestClientsCarryNothingElseThatIsLong(t *testing.T) {
	c := start(t, &service{}, nil, affinity.DialOptions()...)
	long := longID(t)
	for _, v := range []string{long + ".", "x" + long, long + strings.Repeat("A", 200), strings.Repeat("x", 257)} {
		for _, sh := range shapes {
			require.Equal(t, codes.InvalidArgument, status.Code(sh.call(apply(t.Context(), id(v)), c).err), sh.name)
		}
	}
}

func TestServersTakeNoLongValueFromThoseWhomTheyTrust(t *testing.T) {
	for shape, receive := range receivers {
		_, err := receive(t.Context(), metadata.Pairs(affinity.IDHeader, longID(t)))
		require.Equal(t, codes.InvalidArgument, status.Code(err), shape)
	}
}

func TestMovedToASealedIDIsRead(t *testing.T) {
	long := longID(t)
	got, ok := affinity.MovedTo(movedStatus(t, codes.FailedPrecondition, movedInfo(long)))
	require.True(t, ok)
	require.Equal(t, long, got)
}

func TestATokenHoldsSealedValues(t *testing.T) {
	long := longID(t)
	want := map[string]place{proxyTarget: {id: long, name: long}}
	text, err := living(long, want).MarshalText()
	require.NoError(t, err)
	var s affinity.Session
	require.NoError(t, s.UnmarshalText(text))
	require.Equal(t, want, places(&s))
}
