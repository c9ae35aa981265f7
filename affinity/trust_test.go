package affinity_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/homing-grpc/homing/affinity"
)

// byUser trusts calls whose user header says so.
func byUser(ctx context.Context) bool { return user(ctx) == "inside" }

func user(ctx context.Context) string {
	return strings.Join(metadata.ValueFromIncomingContext(ctx, "user"), ",")
}

// as returns ctx for calls of that user, with these headers.
func as(ctx context.Context, user string, kv ...string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, append(kv, "user", user)...)
}

func TestIDsAndKeysOfCallersOutsideAreRefused(t *testing.T) {
	ran := 0
	c := start(t, watch(func(context.Context) { ran++ }), affinity.ServerOptions(affinity.WithTrust(byUser, affinity.Refuse())))
	for _, sh := range shapes {
		for _, name := range []string{affinity.IDHeader, affinity.KeyHeader} {
			for _, value := range []string{"a", strings.Repeat("x", 257)} {
				a := sh.call(as(t.Context(), "outside", name, value), c)
				require.Equal(t, codes.PermissionDenied, status.Code(a.err), sh.name)
				require.Equal(t, "affinity: incoming header "+name+": the caller is not trusted to say where its calls go", status.Convert(a.err).Message())
			}
		}
	}
	require.Zero(t, ran)
}

func TestCallersOutsideThatSayNothingAreServed(t *testing.T) {
	for name, otherwise := range map[string]affinity.Untrusted{"refuse": affinity.Refuse(), "strip": affinity.Strip(), "the zero value": {}} {
		t.Run(name, func(t *testing.T) {
			for shape, receive := range receiversWith(affinity.WithTrust(nil, otherwise)) {
				for _, md := range []metadata.MD{nil, {"other": {"1"}}, {affinity.IDHeader: {}}, {affinity.IDHeader: {""}, affinity.KeyHeader: {"", ""}}} {
					ctx, err := receive(t.Context(), md)
					require.NoError(t, err, shape)
					require.Empty(t, metadata.ValueFromIncomingContext(ctx, affinity.IDHeader), shape)
				}
			}
		})
	}
}

func TestWhatCallersOutsideSayIsStripped(t *testing.T) {
	for _, tc := range headerCases {
		for shape, receive := range receiversWith(affinity.WithTrust(byUser, affinity.Strip())) {
			t.Run(shape+"/"+tc.name, func(t *testing.T) {
				in := metadata.MD{affinity.IDHeader: tc.values, affinity.KeyHeader: tc.values, "other": {"1"}}
				ctx, err := receive(t.Context(), in)
				require.NoError(t, err)
				_, any := affinity.FromContext(ctx)
				require.False(t, any)
				md, _ := metadata.FromIncomingContext(ctx)
				if tc.values != nil {
					require.Equal(t, metadata.MD{"other": {"1"}}, md)
				}
				require.Equal(t, tc.values, in[affinity.IDHeader], "the metadata of others is not changed")
			})
		}
	}
}

// A gateway inside the process may not have made its metadata by gRPC's functions.
func TestHeadersInUpperCaseAreNoWayAround(t *testing.T) {
	in := metadata.MD{"Affinity-Id": {"a"}, "AFFINITY-KEY": {"k"}}
	for shape, receive := range receiversWith(affinity.WithTrust(nil, affinity.Refuse())) {
		_, err := receive(t.Context(), in)
		require.Equal(t, codes.PermissionDenied, status.Code(err), shape)
		ctx, err := receive(t.Context(), metadata.MD{"Affinity-Id": {"a"}, affinity.IDHeader: {""}})
		require.NoError(t, err, shape)
		require.Empty(t, metadata.ValueFromIncomingContext(ctx, affinity.IDHeader), shape)
	}
	for shape, receive := range receiversWith(affinity.WithTrust(nil, affinity.Strip())) {
		ctx, err := receive(t.Context(), in)
		require.NoError(t, err, shape)
		md, _ := metadata.FromIncomingContext(ctx)
		require.Empty(t, md, shape)
		_, any := affinity.FromContext(ctx)
		require.False(t, any, shape)
	}
}

func TestCallersInsideSayWhereTheirCallsGo(t *testing.T) {
	for _, otherwise := range []affinity.Untrusted{affinity.Refuse(), affinity.Strip()} {
		var got affinity.Affinity
		var md metadata.MD
		c := start(t, watch(func(ctx context.Context) {
			got, _ = affinity.FromContext(ctx)
			md, _ = metadata.FromIncomingContext(ctx)
		}), affinity.ServerOptions(affinity.WithTrust(byUser, otherwise), affinity.WithServerID(self)), affinity.DialOptions()...)
		for _, sh := range shapes {
			a := sh.call(as(apply(t.Context(), id("a"), key("k")), "inside"), c)
			require.NoError(t, a.err, sh.name)
			require.Equal(t, affinity.Affinity{Key: "k"}, got, sh.name)
			require.Equal(t, []string{"a"}, md[affinity.IDHeader], sh.name)
			require.Equal(t, []string{self}, a.header[affinity.IDHeader], sh.name)
			require.Equal(t, codes.InvalidArgument, status.Code(sh.call(as(t.Context(), "inside", affinity.IDHeader, strings.Repeat("x", 257)), c).err), sh.name)
		}
	}
}

func TestTrustIsAskedOnceForEachCall(t *testing.T) {
	asked := 0
	c := start(t, &service{unary: func(context.Context) error { return affinity.Moved("b") }},
		affinity.ServerOptions(affinity.WithTrust(func(context.Context) bool { asked++; return false }, affinity.Strip()), affinity.WithServerID(self)))
	for n, sh := range shapes {
		sh.call(as(t.Context(), "outside", affinity.IDHeader, "a", affinity.KeyHeader, "k"), c)
		require.Equal(t, n+1, asked, sh.name)
	}
}

func TestTheLastTrustHolds(t *testing.T) {
	for shape, receive := range receiversWith(affinity.WithTrust(nil, affinity.Refuse()), affinity.WithTrust(nil, affinity.Strip())) {
		_, err := receive(t.Context(), metadata.Pairs(affinity.IDHeader, "a"))
		require.NoError(t, err, shape)
	}
}

func TestCallersOutsideAreNotToldWhoAnswered(t *testing.T) {
	for name, fail := range map[string]error{"success": nil, "failure": errBusy} {
		t.Run(name, func(t *testing.T) {
			c := start(t, &service{
				unary: func(context.Context) error { return fail },
				stream: func(ss grpc.ServerStream, reply any) error {
					if fail != nil {
						return fail
					}
					return ss.SendMsg(reply)
				},
			}, affinity.ServerOptions(affinity.WithServerID(self), affinity.WithTrust(byUser, affinity.Strip())))
			for _, sh := range shapes {
				a := sh.call(as(t.Context(), "outside"), c)
				require.Equal(t, status.Code(fail), status.Code(a.err), sh.name)
				require.Empty(t, a.header[affinity.IDHeader], sh.name)
				require.Empty(t, a.trailer[affinity.IDHeader], sh.name)
			}
		})
	}
}

// movedCases are answers of handlers that name server b.
var movedCases = map[string]func(t testing.TB) error{
	"moved":   func(testing.TB) error { return affinity.Moved("b-secret") },
	"wrapped": func(testing.TB) error { return fmt.Errorf("b-secret: %w", affinity.Moved("b-secret")) },
	"an error of our own with other details": func(t testing.TB) error {
		s, err := status.New(codes.Aborted, "go to b-secret").WithDetails(&errdetails.RetryInfo{}, movedInfo(""), movedInfo("b-secret"), movedInfo("b-secret"))
		require.NoError(t, err)
		return s.Err()
	},
}

func TestCallersOutsideAreNotToldWhereTheStateIs(t *testing.T) {
	for name, moved := range movedCases {
		for _, opts := range [][]affinity.ServerOption{nil, {affinity.WithServerID(self)}} {
			t.Run(name, func(t *testing.T) {
				err := moved(t)
				c := start(t, &service{unary: func(context.Context) error { return err }, stream: func(grpc.ServerStream, any) error { return err }},
					affinity.ServerOptions(append(opts, affinity.WithTrust(byUser, affinity.Strip()))...))
				for _, sh := range shapes {
					inside := sh.call(as(t.Context(), "inside"), c).err
					require.Equal(t, status.Convert(err).Proto().String(), status.Convert(inside).Proto().String(), sh.name)

					outside := sh.call(as(t.Context(), "outside"), c).err
					require.Equal(t, status.Code(err), status.Code(outside), sh.name)
					require.NotContains(t, status.Convert(outside).Proto().String(), "b-secret", sh.name)
					require.Len(t, status.Convert(outside).Details(), len(status.Convert(err).Details()), sh.name)
					id, ok := affinity.MovedTo(outside)
					require.True(t, ok, "it is still told that it is elsewhere")
					require.Empty(t, id, sh.name)
				}
			})
		}
	}
}

func TestOtherErrorsReachCallersOutsideUnchanged(t *testing.T) {
	fail := fmt.Errorf("no room: %w", errBusy)
	_, err := affinity.UnaryServerInterceptor(affinity.WithTrust(nil, affinity.Strip()))(t.Context(), nil, nil,
		func(context.Context, any) (any, error) { return nil, fail })
	require.Same(t, fail, err)
}

// An answer that does not name a server says nothing that is to be hidden.
func TestCallersOutsideLearnThatTheirServerDrains(t *testing.T) {
	fail := movedStatus(t, codes.Aborted, movedInfo(""))
	_, err := affinity.UnaryServerInterceptor(affinity.WithTrust(nil, affinity.Strip()))(t.Context(), nil, nil,
		func(context.Context, any) (any, error) { return nil, fail })
	require.Equal(t, status.Convert(fail).Proto().String(), status.Convert(err).Proto().String())
}

// byCertificate trusts callers whose certificate names them as ours.
func byCertificate(ctx context.Context) bool {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 { // nobody has asked for it, or checked it
		return false
	}
	return info.State.VerifiedChains[0][0].Subject.CommonName == "gateway.internal"
}

func TestTrustCanGoByTheCertificateOfTheCaller(t *testing.T) {
	tlsPeer := func(name string, verified bool) *peer.Peer {
		cert := &x509.Certificate{Subject: pkix.Name{CommonName: name}}
		state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		if verified {
			state.VerifiedChains = [][]*x509.Certificate{{cert}}
		}
		return &peer.Peer{AuthInfo: credentials.TLSInfo{State: state}}
	}
	for shape, receive := range receiversWith(affinity.WithTrust(byCertificate, affinity.Refuse())) {
		for _, tc := range []struct {
			name string
			peer *peer.Peer
			code codes.Code
		}{
			{"ours", tlsPeer("gateway.internal", true), codes.OK},
			{"another", tlsPeer("gateway.example", true), codes.PermissionDenied},
			{"not verified", tlsPeer("gateway.internal", false), codes.PermissionDenied},
			{"plain text", &peer.Peer{}, codes.PermissionDenied},
		} {
			_, err := receive(peer.NewContext(t.Context(), tc.peer), metadata.Pairs(affinity.IDHeader, "a"))
			require.Equal(t, tc.code, status.Code(err), "%s: %s", shape, tc.name)
		}
	}
}

func TestARefusalDoesNotTellCallersOutsideWhoRefused(t *testing.T) {
	seal, err := affinity.NewSealer(time.Hour, bytes.Repeat([]byte{1}, 32))
	require.NoError(t, err)
	sealed, err := seal.SealID(self, "outside")
	require.NoError(t, err)
	c := start(t, &service{}, affinity.ServerOptions(affinity.WithServerID(self),
		affinity.WithFence(alwaysFenced), affinity.WithTrust(byUser, affinity.Sealed(seal, user))))
	for _, sh := range shapes {
		inside := sh.call(as(t.Context(), "inside", affinity.IDHeader, self), c).err
		require.Contains(t, status.Convert(inside).Proto().String(), self, sh.name)
		outside := sh.call(as(t.Context(), "outside", affinity.IDHeader, sealed), c).err
		_, ok := affinity.MovedTo(outside)
		require.True(t, ok, "%s: %v", sh.name, outside)
		require.NotContains(t, status.Convert(outside).Proto().String(), self, sh.name)
	}
}

func TestARefusalThatAHandlerPassesOnDoesNotTellCallersOutsideWhoRefused(t *testing.T) {
	for name, refusal := range refusals(t) {
		t.Run(name, func(t *testing.T) {
			c := start(t, &service{unary: func(context.Context) error { return refusal }, stream: func(grpc.ServerStream, any) error { return refusal }},
				affinity.ServerOptions(affinity.WithTrust(byUser, affinity.Strip())))
			for _, sh := range shapes {
				inside := sh.call(as(t.Context(), "inside"), c).err
				require.Equal(t, codes.Aborted, status.Code(inside), sh.name)
				require.Contains(t, status.Convert(inside).Message(), "storage", sh.name)
				outside := sh.call(as(t.Context(), "outside"), c).err
				require.Equal(t, codes.Aborted, status.Code(outside), sh.name)
				require.NotContains(t, status.Convert(outside).Proto().String(), "storage", sh.name)
			}
		})
	}
}
