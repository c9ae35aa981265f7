package affinity_test

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/internal/callctx"
)

// header returns ctx with more outgoing metadata.
func header(kv ...string) func(context.Context) context.Context {
	return func(ctx context.Context) context.Context { return metadata.AppendToOutgoingContext(ctx, kv...) }
}

func id(v string) func(context.Context) context.Context {
	return func(ctx context.Context) context.Context { return affinity.With(ctx, v) }
}

func key(v string) func(context.Context) context.Context {
	return func(ctx context.Context) context.Context { return affinity.WithKey(ctx, v) }
}

func apply(ctx context.Context, fs ...func(context.Context) context.Context) context.Context {
	for _, f := range fs {
		ctx = f(ctx)
	}
	return ctx
}

func TestClientSendsWhatTheContextSays(t *testing.T) {
	type fs []func(context.Context) context.Context
	cases := []struct {
		name     string
		ctx      fs
		ids      []string // on the wire
		keys     []string
		unmarked bool // the picker has to look at the headers, or at ctx
	}{
		{name: "nothing"},
		{name: "an id", ctx: fs{id("a")}, ids: []string{"a"}, unmarked: true},
		{name: "a required id", ctx: fs{func(ctx context.Context) context.Context { return affinity.Require(ctx, "a") }}, ids: []string{"a"}, unmarked: true},
		{name: "a key", ctx: fs{key("k")}, keys: []string{"k"}, unmarked: true},
		{name: "an id and a key", ctx: fs{id("a"), key("k")}, ids: []string{"a"}, keys: []string{"k"}, unmarked: true},
		{name: "what was cleared is not sent", ctx: fs{id("a"), id("")}},
		{name: "all that is allowed in a value", ctx: fs{key("!\"#$ ,;=~")}, keys: []string{"!\"#$ ,;=~"}, unmarked: true},
		{name: "256 bytes", ctx: fs{key(strings.Repeat("k", 256))}, keys: []string{strings.Repeat("k", 256)}, unmarked: true},

		{name: "an id header alone goes out as it is", ctx: fs{header(affinity.IDHeader, "h")}, ids: []string{"h"}, unmarked: true},
		{name: "a key header alone goes out as it is", ctx: fs{header(affinity.KeyHeader, "h")}, keys: []string{"h"}, unmarked: true},
		{name: "an empty header is none", ctx: fs{header(affinity.IDHeader, "", affinity.KeyHeader, "")}, ids: []string{""}, keys: []string{""}},
		{name: "a header after all was cleared", ctx: fs{id("a"), id(""), header(affinity.IDHeader, "h")}, ids: []string{"h"}, unmarked: true},

		{name: "the same id and key once", ctx: fs{id("a"), key("k"), header(affinity.IDHeader, "a", affinity.KeyHeader, "k")}, ids: []string{"a"}, keys: []string{"k"}, unmarked: true},
		{name: "the same id repeated is sent once", ctx: fs{id("a"), header(affinity.IDHeader, "a", affinity.IDHeader, "a")}, ids: []string{"a"}, unmarked: true},
		{name: "an id wins over an id header", ctx: fs{id("a"), header(affinity.IDHeader, "h")}, ids: []string{"a"}, unmarked: true},
		{name: "a key wins over a key header", ctx: fs{key("k"), header(affinity.KeyHeader, "h")}, keys: []string{"k"}, unmarked: true},
		{name: "a key removes an id header", ctx: fs{key("k"), header(affinity.IDHeader, "h")}, keys: []string{"k"}, unmarked: true},
		{name: "an id leaves a key header", ctx: fs{id("a"), header(affinity.KeyHeader, "h")}, ids: []string{"a"}, keys: []string{"h"}, unmarked: true},
		{name: "an id that replaces a header leaves a key header", ctx: fs{id("a"), header(affinity.IDHeader, "h", affinity.KeyHeader, "h")}, ids: []string{"a"}, keys: []string{"h"}, unmarked: true},
		{name: "both win over both", ctx: fs{header("Affinity-ID", "h", "AFFINITY-KEY", "h"), id("a"), key("k")}, ids: []string{"a"}, keys: []string{"k"}, unmarked: true},
		{name: "headers that are refused alone do not matter under a context that wins", ctx: fs{header(affinity.KeyHeader, "h", affinity.KeyHeader, "i"), key("k")}, keys: []string{"k"}, unmarked: true},

		{name: "a mark from an earlier call does not hide a header", ctx: fs{callctx.WithNoHeaders, header(affinity.KeyHeader, "h")}, keys: []string{"h"}, unmarked: true},
		{name: "a mark from an earlier call does not hide an id", ctx: fs{callctx.WithNoHeaders, id("a")}, ids: []string{"a"}, unmarked: true},
		{name: "a mark stays", ctx: fs{callctx.WithNoHeaders}},
	}
	for _, sh := range shapes {
		t.Run(sh.name, func(t *testing.T) {
			var ctx context.Context
			var md metadata.MD
			c := start(t, watch(func(ctx context.Context) { md, _ = metadata.FromIncomingContext(ctx) }), nil,
				append(affinity.DialOptions(), probe(func(c context.Context) { ctx = c })...)...)
			for _, tc := range cases {
				t.Run(tc.name, func(t *testing.T) {
					in := apply(t.Context(), append(fs{header("other", "1", "other", "2")}, tc.ctx...)...)
					require.NoError(t, sh.call(in, c).err)
					require.Equal(t, tc.ids, md[affinity.IDHeader])
					require.Equal(t, tc.keys, md[affinity.KeyHeader])
					require.Equal(t, []string{"1", "2"}, md["other"], "metadata of others")

					v := callctx.From(ctx)
					require.Equal(t, !tc.unmarked, v != nil && v.NoHeaders, "the mark")
					want, _ := affinity.FromContext(in)
					got, _ := affinity.FromContext(ctx)
					require.Equal(t, want, got, "what the picker sees")
				})
			}
		})
	}
}

func TestClientDoesNotChangeTheCallersMetadata(t *testing.T) {
	md := metadata.Pairs(affinity.IDHeader, "h", "other", "1")
	c := start(t, &service{}, nil, affinity.DialOptions()...)

	ctx := affinity.With(metadata.NewOutgoingContext(t.Context(), md), "a")
	require.NoError(t, unaryShape.call(ctx, c).err)
	require.Equal(t, metadata.Pairs(affinity.IDHeader, "h", "other", "1"), md)
}

func TestClientInstalledTwiceSendsOnce(t *testing.T) {
	var md metadata.MD
	c := start(t, watch(func(ctx context.Context) { md, _ = metadata.FromIncomingContext(ctx) }), nil,
		append(affinity.DialOptions(), affinity.DialOptions(nil)...)...)
	for _, sh := range shapes {
		require.NoError(t, sh.call(apply(t.Context(), id("a"), key("k")), c).err)
		require.Equal(t, []string{"a"}, md[affinity.IDHeader], sh.name)
		require.Equal(t, []string{"k"}, md[affinity.KeyHeader], sh.name)
	}
}

func TestClientRefusesWhatAHeaderCannotCarry(t *testing.T) {
	type fs []func(context.Context) context.Context
	long := strings.Repeat("x", 257)
	for _, tc := range []struct {
		name string
		ctx  fs
		want string
	}{
		{"a long id", fs{id(long)}, `affinity: id in the context "` + long[:64] + `"...: 257 bytes are more than 256`},
		{"a long key", fs{key(long)}, `affinity: key in the context "` + long[:64] + `"...: 257 bytes are more than 256`},
		{"a long key beside an id", fs{id("a"), key(long)}, `affinity: key in the context "` + long[:64] + `"...: 257 bytes are more than 256`},
		{"a control character", fs{key("a\nb")}, `affinity: key in the context "a\nb": byte 1 is not printable ASCII`},
		{"a DEL", fs{id("a\x7f")}, `affinity: id in the context "a\x7f": byte 1 is not printable ASCII`},
		{"a letter beyond ASCII", fs{key("é")}, `affinity: key in the context "\u00e9": byte 0 is not printable ASCII`},
		{"a byte that is no UTF-8", fs{key("\xff")}, `affinity: key in the context "\xff": byte 0 is not printable ASCII`},
		{"a space at the start", fs{key(" k")}, `affinity: key in the context " k": it starts or ends with a space`},
		{"a space at the end", fs{id("a ")}, `affinity: id in the context "a ": it starts or ends with a space`},
		{"a space alone", fs{id(" ")}, `affinity: id in the context " ": it starts or ends with a space`},
		{"a long id header", fs{header(affinity.IDHeader, long)}, `affinity: outgoing header affinity-id "` + long[:64] + `"...: 257 bytes are more than 256`},
		{"a bad key header", fs{header(affinity.KeyHeader, "a\tb")}, `affinity: outgoing header affinity-key "a\tb": byte 1 is not printable ASCII`},
		{"a bad key header beside an id", fs{id("a"), header(affinity.KeyHeader, "a\tb")}, `affinity: outgoing header affinity-key "a\tb": byte 1 is not printable ASCII`},
		{"two id headers", fs{header(affinity.IDHeader, "h", affinity.IDHeader, "i")}, `affinity: outgoing header affinity-id "i": an earlier value differs`},
		{"two key headers beside an id", fs{id("a"), header(affinity.KeyHeader, "h", affinity.KeyHeader, "i")}, `affinity: outgoing header affinity-key "i": an earlier value differs`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			left := 0
			c := start(t, &service{}, nil, append(affinity.DialOptions(), probe(func(context.Context) { left++ })...)...)
			for _, sh := range shapes {
				err := sh.call(apply(t.Context(), tc.ctx...), c).err
				require.Equal(t, codes.InvalidArgument, status.Code(err), sh.name)
				require.Equal(t, tc.want, status.Convert(err).Message(), sh.name)
			}
			require.Zero(t, left, "calls that left the client")
		})
	}
}

// A call without affinity costs the mark and nothing else, and one that was
// marked before costs nothing.
func TestClientAllocatesNothingForACallAlreadyMarked(t *testing.T) {
	call := affinity.UnaryClientInterceptor()
	invoker := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return nil }
	ctx := callctx.WithNoHeaders(t.Context())
	require.Zero(t, testing.AllocsPerRun(100, func() { _ = call(ctx, "/s/m", nil, nil, nil, invoker) }))
}
