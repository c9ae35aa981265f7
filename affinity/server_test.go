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
)

// headerCases say what a server makes of the values of one header. why is part
// of the refusal, "" if there is none.
var headerCases = []struct {
	name   string
	values []string
	want   string
	why    string
}{
	{name: "none"},
	{name: "one", values: []string{"k"}, want: "k"},
	{name: "the edges of printable ASCII", values: []string{"! ~"}, want: "! ~"},
	{name: "an empty one", values: []string{""}},
	{name: "two empty ones", values: []string{"", ""}},
	{name: "the same twice", values: []string{"k", "k"}, want: "k"},
	{name: "two", values: []string{"k", "l"}, why: `"l": an earlier value differs`},
	{name: "the third differs", values: []string{"k", "k", "l"}, why: `"l": an earlier value differs`},
	{name: "an empty one and another", values: []string{"", "k"}, why: `"k": an earlier value differs`},
	{name: "one and an empty one", values: []string{"k", ""}, why: `"": an earlier value differs`},
	{name: "256 bytes", values: []string{strings.Repeat("k", 256)}, want: strings.Repeat("k", 256)},
	{name: "257 bytes", values: []string{strings.Repeat("k", 257)}, why: `"` + strings.Repeat("k", 64) + `"...: 257 bytes are more than 256`},
	{name: "a control character", values: []string{"a\x1fb"}, why: `"a\x1fb": byte 1 is not printable ASCII`},
	{name: "a DEL", values: []string{"a\x7f"}, why: `"a\x7f": byte 1 is not printable ASCII`},
	{name: "a letter beyond ASCII", values: []string{"é"}, why: `"\u00e9": byte 0 is not printable ASCII`},
	{name: "a byte that is no UTF-8", values: []string{"k\xff"}, why: `"k\xff": byte 1 is not printable ASCII`},
	{name: "a space at the start", values: []string{" k"}, why: `" k": it starts or ends with a space`},
	{name: "a space at the end", values: []string{"k "}, why: `"k ": it starts or ends with a space`},
	{name: "a space alone", values: []string{" "}, why: `" ": it starts or ends with a space`},
}

// fakeStream is a stream of which only the context is asked.
type fakeStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *fakeStream) Context() context.Context { return s.ctx }

// receive runs a server interceptor on md, without gRPC: its client refuses to
// send some of the values that other clients send. ran is nil if the handler
// did not run, else its context.
type receive func(ctx context.Context, md metadata.MD) (ran context.Context, err error)

var receivers = receiversWith()

// receiversWith returns how servers with these options receive a call.
func receiversWith(opts ...affinity.ServerOption) map[string]receive {
	return map[string]receive{
		"unary": func(ctx context.Context, md metadata.MD) (ran context.Context, err error) {
			_, err = affinity.UnaryServerInterceptor(opts...)(metadata.NewIncomingContext(ctx, md), nil, nil,
				func(ctx context.Context, _ any) (any, error) {
					ran = ctx
					return nil, nil
				})
			return ran, err
		},
		"stream": func(ctx context.Context, md metadata.MD) (ran context.Context, err error) {
			err = affinity.StreamServerInterceptor(opts...)(nil, &fakeStream{ctx: metadata.NewIncomingContext(ctx, md)}, nil,
				func(_ any, ss grpc.ServerStream) error {
					ran = ss.Context()
					return nil
				})
			return ran, err
		},
	}
}

func TestServerChecksItsHeaders(t *testing.T) {
	for shape, receive := range receivers {
		for _, name := range []string{affinity.IDHeader, affinity.KeyHeader} {
			for _, tc := range headerCases {
				t.Run(shape+"/"+name+"/"+tc.name, func(t *testing.T) {
					ctx, err := receive(t.Context(), metadata.MD{name: tc.values, "other": {"1"}})
					if tc.why != "" {
						require.Nil(t, ctx, "the handler ran")
						require.Equal(t, codes.InvalidArgument, status.Code(err))
						require.Equal(t, "affinity: incoming header "+name+" "+tc.why, status.Convert(err).Message())
						return
					}
					require.NoError(t, err)
					got, _ := affinity.FromContext(ctx)
					if name == affinity.IDHeader {
						require.Zero(t, got, "an id goes no further")
					} else {
						require.Equal(t, affinity.Affinity{Key: tc.want}, got)
					}
				})
			}
		}
	}
}

func TestServerRefusesOverTheWire(t *testing.T) {
	ran := 0
	c := start(t, watch(func(context.Context) { ran++ }), affinity.ServerOptions(affinity.WithServerID("game-1")))
	for _, sh := range shapes {
		for _, values := range [][]string{{"k", "l"}, {"k", ""}, {strings.Repeat("k", 257)}} { // what gRPC sends
			for _, name := range []string{affinity.IDHeader, affinity.KeyHeader} {
				a := sh.call(metadata.NewOutgoingContext(t.Context(), metadata.MD{name: values}), c)
				require.Equal(t, codes.InvalidArgument, status.Code(a.err), "%s, %s: %.20q", sh.name, name, values)
			}
		}
	}
	require.Zero(t, ran)
}

// gRPC takes a header that ends in -bin for another one, and decodes it.
func TestHeadersThatOnlyLookAlikeAreNotRead(t *testing.T) {
	for name, opts := range map[string][]affinity.ServerOption{
		"all trusted": nil,
		"refuse":      {affinity.WithTrust(nil, affinity.Refuse())},
		"strip":       {affinity.WithTrust(nil, affinity.Strip())},
	} {
		t.Run(name, func(t *testing.T) {
			lookAlike := map[string]string{
				affinity.IDHeader + "-bin":  strings.Repeat("\x00\xff", 200),
				affinity.KeyHeader + "-bin": "k",
				"x-" + affinity.IDHeader:    "a",
				affinity.KeyHeader + "s":    "k",
			}
			var got affinity.Affinity
			var md metadata.MD
			c := start(t, watch(func(ctx context.Context) {
				got, _ = affinity.FromContext(ctx)
				md, _ = metadata.FromIncomingContext(ctx)
			}), affinity.ServerOptions(opts...), affinity.DialOptions()...)
			for _, sh := range shapes {
				require.NoError(t, sh.call(metadata.NewOutgoingContext(t.Context(), metadata.New(lookAlike)), c).err, sh.name)
				require.Zero(t, got, sh.name)
				for h, v := range lookAlike {
					require.Equal(t, []string{v}, md[h], sh.name)
				}
				require.Empty(t, md[affinity.IDHeader], sh.name)
				require.Empty(t, md[affinity.KeyHeader], sh.name)
			}
		})
	}
}

func TestServerGivesTheKeyAndNotTheIDToTheHandler(t *testing.T) {
	for _, opts := range [][]affinity.ServerOption{nil, {affinity.WithServerID("game-1")}} {
		var got affinity.Affinity
		var md metadata.MD
		c := start(t, watch(func(ctx context.Context) {
			got, _ = affinity.FromContext(ctx)
			md, _ = metadata.FromIncomingContext(ctx)
		}), affinity.ServerOptions(opts...), affinity.DialOptions()...)
		for _, sh := range shapes {
			require.NoError(t, sh.call(apply(t.Context(), id("a"), key("k")), c).err)
			require.Equal(t, affinity.Affinity{Key: "k"}, got, sh.name)
			require.Equal(t, []string{"a"}, md[affinity.IDHeader], sh.name)
		}
	}
}

func TestServerLeavesAKeyThatAnotherInterceptorChose(t *testing.T) {
	for shape, receive := range receivers {
		ctx, err := receive(affinity.WithKey(t.Context(), "tenant-7"), metadata.Pairs(affinity.KeyHeader, "k"))
		require.NoError(t, err, shape)
		got, _ := affinity.FromContext(ctx)
		require.Equal(t, affinity.Affinity{Key: "tenant-7"}, got, shape)
	}
}

// The calls that a handler makes with its context carry the key on. The id was
// meant for the first service alone.
func TestKeyTravelsThroughAHandlerAndIDDoesNot(t *testing.T) {
	for _, sh := range shapes {
		t.Run(sh.name, func(t *testing.T) {
			var md metadata.MD
			var got affinity.Affinity
			second := start(t, watch(func(ctx context.Context) {
				md, _ = metadata.FromIncomingContext(ctx)
				got, _ = affinity.FromContext(ctx)
			}), affinity.ServerOptions(), affinity.DialOptions()...)
			first := start(t, &service{
				unary: func(ctx context.Context) error { return sh.call(ctx, second).err },
				stream: func(ss grpc.ServerStream, reply any) error {
					if err := sh.call(ss.Context(), second).err; err != nil {
						return err
					}
					return ss.SendMsg(reply)
				},
			}, affinity.ServerOptions(affinity.WithServerID("front-1")), affinity.DialOptions()...)

			require.NoError(t, sh.call(apply(t.Context(), id("front-1"), key("k")), first).err)
			require.Equal(t, []string{"k"}, md[affinity.KeyHeader])
			require.Empty(t, md[affinity.IDHeader])
			require.Equal(t, affinity.Affinity{Key: "k"}, got)
		})
	}
}

func TestServerWrapsNoStreamWithoutNeed(t *testing.T) {
	ss := &fakeStream{ctx: metadata.NewIncomingContext(t.Context(), metadata.Pairs(affinity.IDHeader, "a"))}
	err := affinity.StreamServerInterceptor(nil)(nil, ss, nil, func(_ any, got grpc.ServerStream) error {
		require.Same(t, ss, got)
		return nil
	})
	require.NoError(t, err)
}

func TestServerAllocatesNothingForACallWithoutAffinity(t *testing.T) {
	call := affinity.UnaryServerInterceptor()
	handler := func(context.Context, any) (any, error) { return nil, nil }
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("other", "1"))
	require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = call(ctx, nil, nil, handler) }))
}

// FuzzIncomingHeader holds the check of incoming headers against a second
// opinion, and the client's check against the server's.
func FuzzIncomingHeader(f *testing.F) {
	for _, tc := range headerCases {
		switch len(tc.values) {
		case 1:
			f.Add(tc.values[0], tc.values[0])
		case 2:
			f.Add(tc.values[0], tc.values[1])
		}
	}
	client := affinity.UnaryClientInterceptor()
	f.Fuzz(func(t *testing.T, first, second string) {
		ok := first == second && len(first) <= 256 && strings.Trim(first, " ") == first &&
			strings.IndexFunc(first, func(r rune) bool { return r < ' ' || r > '~' }) < 0
		for shape, receive := range receivers {
			ctx, err := receive(t.Context(), metadata.MD{affinity.KeyHeader: {first, second}})
			if !ok {
				require.Equal(t, codes.InvalidArgument, status.Code(err), shape)
				require.Nil(t, ctx, shape)
				require.LessOrEqual(t, len(status.Convert(err).Message()), 1024, shape)
				continue
			}
			require.NoError(t, err, shape)
			got, _ := affinity.FromContext(ctx)
			require.Equal(t, affinity.Affinity{Key: first}, got, shape)
		}
		if first != second || strings.HasPrefix(first, "hs1.") { // a client carries sealed ones, which are longer
			return
		}
		err := client(affinity.WithKey(t.Context(), first), "/s/m", nil, nil, nil,
			func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
				if first != "" {
					require.Equal(t, []string{first}, metadata.ValueFromOutgoingContext(ctx, affinity.KeyHeader))
				}
				return nil
			})
		require.Equal(t, ok, err == nil, "the client and the server disagree")
	})
}
