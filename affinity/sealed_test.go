package affinity_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
)

// sealing makes a server trust the user "inside", and others by what keyA has sealed.
func sealing(t testing.TB) affinity.ServerOption {
	return affinity.WithTrust(byUser, affinity.Sealed(newSealer(t, keyA), user))
}

func sealedKey(t testing.TB, key, subject string) string {
	t.Helper()
	text, err := newSealer(t, keyA).SealKey(key, subject)
	require.NoError(t, err)
	return text
}

func TestSealedIDsAndKeysReachTheHandlerOpened(t *testing.T) {
	var got affinity.Affinity
	var md metadata.MD
	c := start(t, watch(func(ctx context.Context) {
		got, _ = affinity.FromContext(ctx)
		md, _ = metadata.FromIncomingContext(ctx)
	}), affinity.ServerOptions(sealing(t)), affinity.DialOptions()...)
	for _, sh := range shapes {
		ctx := as(apply(t.Context(), id(sealedID(t, "game-2", "alice")), key(sealedKey(t, "room-42", "alice"))), "alice")
		require.NoError(t, sh.call(ctx, c).err, sh.name)
		require.Equal(t, affinity.Affinity{Key: "room-42"}, got, sh.name)
		require.Equal(t, []string{"game-2"}, md[affinity.IDHeader], sh.name)
		require.Equal(t, []string{"room-42"}, md[affinity.KeyHeader], sh.name)
		require.Equal(t, []string{"alice"}, md["user"], sh.name)
	}
}

func TestCallersInsideNeedNoSeal(t *testing.T) {
	var md metadata.MD
	c := start(t, watch(func(ctx context.Context) { md, _ = metadata.FromIncomingContext(ctx) }),
		affinity.ServerOptions(sealing(t), affinity.WithServerID(self)), affinity.DialOptions()...)
	for _, sh := range shapes {
		a := sh.call(as(apply(t.Context(), id("game-2")), "inside"), c)
		require.NoError(t, a.err, sh.name)
		require.Equal(t, []string{"game-2"}, md[affinity.IDHeader], sh.name)
		require.Equal(t, []string{self}, a.header[affinity.IDHeader], sh.name)
	}
}

func TestWhatIsNotSealedForTheCallerIsRefused(t *testing.T) {
	other, err := newSealer(t, keyB).SealID("game-2", "mallory")
	require.NoError(t, err)
	bad := map[string]string{
		affinity.IDHeader:  sealedKey(t, "game-2", "mallory"),
		affinity.KeyHeader: sealedID(t, "game-2", "mallory"),
	}
	for shape, receive := range receiversWith(sealing(t)) {
		for name, text := range map[string]string{
			"plain":           "game-2",
			"another's id":    sealedID(t, "game-2", "alice"),
			"another's key":   sealedKey(t, "room-42", "alice"),
			"by another key":  other,
			"long":            strings.Repeat("x", 1<<20),
			"not ASCII":       "\xff\x00",
			"with a space":    " " + sealedID(t, "game-2", "mallory"),
			"with a new line": sealedID(t, "game-2", "mallory") + "\n",
		} {
			for _, header := range []string{affinity.IDHeader, affinity.KeyHeader} {
				for _, text := range []string{text, bad[header]} {
					ctx, err := receive(t.Context(), metadata.Pairs("user", "mallory", header, text))
					require.Nil(t, ctx, "%s, %s: the handler ran", shape, name)
					require.Equal(t, codes.PermissionDenied, status.Code(err), "%s, %s", shape, name)
					require.Equal(t, "affinity: incoming header "+header+": it is damaged, forged, or sealed for another", status.Convert(err).Message())
				}
			}
		}
	}
}

func TestSealedHeadersThatRepeatMustAgree(t *testing.T) {
	a, b := sealedID(t, "a", "alice"), sealedID(t, "b", "alice")
	for shape, receive := range receiversWith(sealing(t)) {
		for _, tc := range []struct {
			values []string
			code   codes.Code
			want   []string
		}{
			{[]string{a, a}, codes.OK, []string{"a"}},
			{[]string{a, b}, codes.InvalidArgument, nil},
			{[]string{a, ""}, codes.InvalidArgument, nil},
			{[]string{"", ""}, codes.OK, nil},
			{[]string{""}, codes.OK, nil},
		} {
			ctx, err := receive(t.Context(), metadata.MD{"user": {"alice"}, affinity.IDHeader: tc.values})
			require.Equal(t, tc.code, status.Code(err), "%s: %q", shape, tc.values)
			if err == nil {
				require.Equal(t, tc.want, metadata.ValueFromIncomingContext(ctx, affinity.IDHeader))
			}
		}
	}
}

func TestAnExpiredIDIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, forged := sealedID(t, "game-2", "alice"), sealedID(t, "game-2", "bob")
		time.Sleep(time.Hour)
		for shape, receive := range receiversWith(sealing(t)) {
			for _, text := range []string{old, forged} { // the latter says so, and may as well be believed
				ctx, err := receive(t.Context(), metadata.Pairs("user", "alice", affinity.IDHeader, text))
				require.NoError(t, err, shape)
				require.Empty(t, metadata.ValueFromIncomingContext(ctx, affinity.IDHeader), shape)
			}
		}
	})
}

func TestAnExpiredKeyIsRefusedWithAReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := sealedKey(t, "room-42", "alice")
		time.Sleep(time.Hour)
		for shape, receive := range receiversWith(sealing(t)) {
			ctx, err := receive(t.Context(), metadata.Pairs("user", "alice", affinity.KeyHeader, old))
			require.Nil(t, ctx, shape)
			s := status.Convert(err)
			require.Equal(t, codes.PermissionDenied, s.Code(), shape)
			require.Equal(t, "affinity: incoming header affinity-key: it has expired", s.Message())
			require.Len(t, s.Details(), 1)
			info := s.Details()[0].(*errdetails.ErrorInfo)
			require.Equal(t, affinity.ExpiredReason, info.GetReason())
			require.Equal(t, affinity.MovedDomain, info.GetDomain())
			require.Equal(t, map[string]string{"header": affinity.KeyHeader}, info.GetMetadata())

			_, err = receive(t.Context(), metadata.Pairs("user", "mallory", affinity.KeyHeader, old))
			require.Empty(t, status.Convert(err).Details(), "it is not mallory's")
		}
	})
}

func TestACallerWithoutASubjectHasNothingSealed(t *testing.T) {
	c := start(t, &service{unary: func(context.Context) error { return affinity.Moved("b") }},
		affinity.ServerOptions(sealing(t), affinity.WithServerID(self)))
	a := unaryShape.call(t.Context(), c)
	require.Empty(t, a.trailer[affinity.IDHeader])
	to, ok := affinity.MovedTo(a.err)
	require.True(t, ok)
	require.Empty(t, to)
	a = unaryShape.call(metadata.AppendToOutgoingContext(t.Context(), affinity.IDHeader, sealedID(t, "a", "alice")), c)
	require.Equal(t, codes.PermissionDenied, status.Code(a.err))
}

func TestCallersOutsideAreToldSealedIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, fail := range map[string]error{"success": nil, "failure": errBusy} {
			c := start(t, &service{
				unary: func(context.Context) error { return fail },
				stream: func(ss grpc.ServerStream, reply any) error {
					if fail != nil {
						return fail
					}
					return ss.SendMsg(reply)
				},
			}, affinity.ServerOptions(affinity.WithServerID(self), sealing(t)))
			for _, sh := range shapes {
				a := sh.call(as(t.Context(), "alice"), c)
				require.Equal(t, status.Code(fail), status.Code(a.err), "%s: %s", name, sh.name)
				require.Equal(t, []string{sealedID(t, self, "alice")}, append(a.header[affinity.IDHeader], a.trailer[affinity.IDHeader]...), "%s: %s", name, sh.name)
			}
		}
	})
}

func TestCallersOutsideAreToldASealedIDOfWhereTheStateIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, moved := range movedCases {
			err := moved(t)
			for _, opts := range [][]affinity.ServerOption{{sealing(t)}, {sealing(t), affinity.WithServerID(self)}} {
				c := start(t, &service{unary: func(context.Context) error { return err }, stream: func(grpc.ServerStream, any) error { return err }},
					affinity.ServerOptions(opts...))
				for _, sh := range shapes {
					outside := sh.call(as(t.Context(), "alice"), c).err
					require.NotContains(t, status.Convert(outside).Proto().String(), "b-secret", "%s: %s", name, sh.name)
					var ids []string
					for _, d := range status.Convert(outside).Details() {
						if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetMetadata()["id"] != "" {
							ids = append(ids, info.GetMetadata()["id"])
						}
					}
					require.NotEmpty(t, ids)
					for _, got := range ids {
						require.Equal(t, sealedID(t, "b-secret", "alice"), got, "%s: %s", name, sh.name)
					}
				}
			}
		}
	})
}

func TestASessionOutsideLearnsALongID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := strings.Repeat("x", 256)
		c := start(t, &service{}, affinity.ServerOptions(sealing(t), affinity.WithServerID(long)), affinity.DialOptions()...)
		s := affinity.NewSession("")
		for range 2 {
			require.NoError(t, unaryShape.call(s.Context(as(t.Context(), "alice")), c).err)
			require.Equal(t, sealedID(t, long, "alice"), s.ID("passthrough:///bufconn"))
		}
	})
}

// A handler may have made the detail up.
func TestAnIDThatCannotBeSealedIsNotTold(t *testing.T) {
	fail := movedStatus(t, codes.FailedPrecondition, movedInfo("b\n"))
	_, err := affinity.UnaryServerInterceptor(sealing(t))(metadata.NewIncomingContext(t.Context(), metadata.Pairs("user", "alice")), nil, nil,
		func(context.Context, any) (any, error) { return nil, fail })
	id, ok := affinity.MovedTo(err)
	require.True(t, ok)
	require.Empty(t, id)
}

func TestAServerThatCannotSealFailsEveryCall(t *testing.T) {
	for name, otherwise := range map[string]affinity.Untrusted{
		"no sealer":         affinity.Sealed(nil, user),
		"an unmade sealer":  affinity.Sealed(new(affinity.Sealer), user),
		"no subject":        affinity.Sealed(newSealer(t, keyA), nil),
		"neither of either": affinity.Sealed(nil, nil),
	} {
		for shape, receive := range receiversWith(affinity.WithTrust(nil, otherwise), affinity.WithServerID(self)) {
			ctx, err := receive(t.Context(), nil)
			require.Nil(t, ctx, "%s, %s", shape, name)
			require.Equal(t, codes.Internal, status.Code(err), "%s, %s", shape, name)
			require.Equal(t, "affinity: WithTrust: Sealed needs a sealer made by NewSealer, and a subject", status.Convert(err).Message())
		}
		for shape, receive := range receiversWith(affinity.WithTrust(nil, otherwise), affinity.WithTrust(nil, affinity.Strip())) {
			_, err := receive(t.Context(), nil)
			require.NoError(t, err, "%s, %s", shape, name)
		}
	}
}

// behindSealingProxy is behindProxy with servers that seal for callers outside, and a
// proxy that opens what they have sealed.
func behindSealingProxy(t *testing.T, f func(t *testing.T, w *world, p *proxy)) {
	t.Helper()
	behindProxyTo(t, func(name string) []affinity.ServerOption {
		return []affinity.ServerOption{affinity.WithServerID(name), sealing(t)}
	}, func(t *testing.T, w *world, p *proxy) {
		p.opener = newSealer(t, keyA)
		f(t, w, p)
	})
}

// opened is where s lives, for alice.
func opened(t *testing.T, s *affinity.Session) string {
	t.Helper()
	got, err := newSealer(t, keyA, keyB).OpenID(s.ID(proxyTarget), "alice")
	require.NoError(t, err)
	return got
}

func TestASessionOutsideComesBackBySealedIDs(t *testing.T) {
	behindSealingProxy(t, func(t *testing.T, w *world, p *proxy) {
		s := affinity.NewSession("")
		m := watchMoves(s)
		alice := s.Context(as(bg, "alice"))
		w.reaches("a", alice)
		require.Equal(t, "a", opened(t, s))
		p.set("b", false)
		for range 3 {
			w.reaches("a", alice)
		}
		require.Equal(t, []string{"", "a", "a", "a"}, p.ids(), "as it opened them")
		w.game("a").onStream(echo("a"))
		ss := w.open(alice)
		w.says("a", ss)
		require.NoError(t, ss.CloseSend())
		m.are(t)
	})
}

func TestASessionOutsideIsNotToldThatItsIDWasRenewed(t *testing.T) {
	behindSealingProxy(t, func(t *testing.T, w *world, p *proxy) {
		s := affinity.NewSession("")
		m := watchMoves(s)
		alice := s.Context(as(bg, "alice"))
		w.reaches("a", alice)
		w.game("a").onStream(echo("a"))
		ss := w.open(alice)
		w.says("a", ss)
		p.set("b", false)
		forms := map[string]bool{}
		for range 60 { // ten hours, of which an id lives one
			time.Sleep(10 * time.Minute)
			w.reaches("a", alice)
			forms[s.ID(proxyTarget)] = true
		}
		require.Greater(t, len(forms), 10)
		w.says("a", ss)
		require.NoError(t, ss.CloseSend())
		m.are(t)
	})
}

func TestASessionOutsideOutlivesItsID(t *testing.T) {
	for name, next := range map[string]string{"on the same server": "a", "on another": "b"} {
		t.Run(name, func(t *testing.T) {
			behindSealingProxy(t, func(t *testing.T, w *world, p *proxy) {
				s := affinity.NewSession("")
				m := watchMoves(s)
				alice := s.Context(as(bg, "alice"))
				w.reaches("a", alice)
				old := s.ID(proxyTarget)
				time.Sleep(24 * time.Hour)
				p.set(next, false)
				w.reaches(next, alice)
				require.Equal(t, next, opened(t, s))
				if next == "a" {
					m.are(t)
				} else {
					m.are(t, old+" "+s.ID(proxyTarget)+" moved")
				}
			})
		})
	}
}

func TestASessionOutsideIsNotToldThatKeysChange(t *testing.T) {
	steps := [][][]byte{{keyA}, {keyA, keyB}, {keyB, keyA}, {keyB}}
	behindSealingProxy(t, func(t *testing.T, w *world, p *proxy) {
		s := affinity.NewSession("")
		m := watchMoves(s)
		alice := s.Context(as(bg, "alice"))
		w.reaches("a", alice)
		// The answers that servers with these keys give.
		for i, old := range steps[:3] {
			for _, keys := range [][][]byte{steps[i+1], old, steps[i+1]} {
				w.game("a").onUnary(func(ctx context.Context, _ *testpb.SimpleRequest) error {
					text, err := newSealer(t, keys...).SealID("a", "alice")
					require.NoError(t, err)
					return grpc.SetHeader(ctx, metadata.Pairs(affinity.IDHeader, text))
				})
				p.opener = newSealer(t, keyA, keyB)
				ctx := metadata.NewOutgoingContext(alice, metadata.Pairs("user", "inside"))
				w.reaches("a", ctx)
			}
		}
		m.are(t)
		_, err := newSealer(t, keyB).OpenID(s.ID(proxyTarget), "alice")
		require.NoError(t, err, "it has come along")
	})
}

func TestMovedIsFollowedOutsideBySealedIDs(t *testing.T) {
	behindSealingProxy(t, func(t *testing.T, w *world, p *proxy) {
		s := affinity.NewSession("")
		m := watchMoves(s)
		alice := s.Context(as(bg, "alice"))
		w.reaches("a", alice)
		w.game("a").fails(affinity.Moved("b"))
		w.reaches("b", alice)
		require.Equal(t, "b", opened(t, s))
		m.are(t, sealedID(t, "a", "alice")+" "+sealedID(t, "b", "alice")+" moved")
	})
}

func TestTheIDOfAnotherUserLeadsNowhere(t *testing.T) {
	behindSealingProxy(t, func(t *testing.T, w *world, p *proxy) {
		s := affinity.NewSession("")
		w.reaches("a", s.Context(as(bg, "alice")))
		p.set("b", false)
		before := w.game("a").served()
		_, err := w.call(affinity.With(as(bg, "mallory"), s.ID(proxyTarget)))
		require.Equal(t, codes.PermissionDenied, status.Code(err))
		_, err = w.call(affinity.With(as(bg, "mallory"), "a"))
		require.Equal(t, codes.PermissionDenied, status.Code(err))
		require.Equal(t, before, w.game("a").served())
	})
}

// FuzzSealedHeader: whatever a stranger sends, the handler sees what was sealed for it,
// or nothing.
func FuzzSealedHeader(f *testing.F) {
	id, key := sealedID(f, "game-1", "alice"), sealedKey(f, "room-42", "alice")
	for _, text := range []string{"", "game-1", id, key, id + id, "hs1..", "\xff"} {
		f.Add(text, text, "alice")
		f.Add(id, text, "alice")
		f.Add(text, key, "mallory")
	}
	receivers := receiversWith(affinity.WithTrust(byUser, affinity.Sealed(newSealer(f, keyA), user)))
	f.Fuzz(func(t *testing.T, idText, keyText, who string) {
		if who == "inside" {
			return
		}
		for shape, receive := range receivers {
			ctx, err := receive(t.Context(), metadata.MD{"user": {who}, affinity.IDHeader: {idText}, affinity.KeyHeader: {keyText}})
			if err != nil {
				require.Equal(t, codes.PermissionDenied, status.Code(err), shape)
				require.Less(t, len(err.Error()), 200, shape)
				continue
			}
			a, _ := affinity.FromContext(ctx)
			ids := strings.Join(metadata.ValueFromIncomingContext(ctx, affinity.IDHeader), ",")
			if who != "alice" {
				require.Zero(t, a, shape)
				require.Empty(t, ids, shape)
			}
			require.Contains(t, []string{"", "room-42"}, a.Key, shape)
			require.Contains(t, []string{"", "game-1"}, ids, shape)
		}
	})
}
