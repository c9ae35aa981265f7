package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/homing-grpc/homing/affinity"
	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/stickybalancer"
)

const tokenTTL = 1 // seconds, after which etcd forgets a token that nobody used

// startSecureEtcd starts an etcd that talks TLS alone, and to users alone: "game" may read
// and write "game/", and nothing else.
func startSecureEtcd(t *testing.T) (*etcd, *tls.Config) {
	t.Helper()
	cert, key, roots := newCertificate(t)
	e := newEtcd(t)
	e.client.Scheme = "https"
	e.adjust = func(cfg *embed.Config) {
		cfg.ClientTLSInfo = transport.TLSInfo{CertFile: cert, KeyFile: key}
		cfg.AuthTokenTTL = tokenTTL
		cfg.BcryptCost = 4 // the least; passwords take a second under the race detector
	}
	e.start()
	cfg := &tls.Config{RootCAs: roots}
	root := e.newClientAs(clientv3.Config{TLS: cfg})
	do := func(_ any, err error) {
		t.Helper()
		require.NoError(t, err)
	}
	do(root.UserAdd(bg, "root", "secret"))
	do(root.UserGrantRole(bg, "root", "root"))
	do(root.UserAdd(bg, "game", "play"))
	do(root.RoleAdd(bg, "game"))
	do(root.RoleGrantPermission(bg, "game", service+"/", clientv3.GetPrefixRangeEnd(service+"/"),
		clientv3.PermissionType(clientv3.PermReadWrite)))
	do(root.UserGrantRole(bg, "game", "game"))
	do(root.AuthEnable(bg))
	return e, cfg
}

// newCertificate makes a certificate for 127.0.0.1, which is its own authority.
func newCertificate(t *testing.T) (cert, key string, roots *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	about := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, about, about, &private.PublicKey, private)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	write := func(name, kind string, b []byte) string {
		path := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600))
		return path
	}
	parsed, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots = x509.NewCertPool()
	roots.AddCert(parsed)
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", secret), roots
}

func TestAUserOfASecureEtcdRegistersAndResolves(t *testing.T) {
	e, cfg := startSecureEtcd(t)
	cli := e.newClientAs(clientv3.Config{TLS: cfg, Username: "game", Password: "play"})
	register(t, cli, startServer(t, "a"))
	b := register(t, cli, startServer(t, "b"))
	c := newChannel(t, cli, stickybalancer.Config{})
	c.sees("a", "b")
	c.reaches("b", affinity.Require(bg, "b"))
	require.NoError(t, b.Drain(bg))
	c.sees("a")
	require.NoError(t, b.Close(bg))
	require.Len(t, listed(t, cli), 1)
}

// etcd forgets a token that was not used for its TTL; the client then gets a new one, and
// what runs for long must not mind.
func TestRegistrationAndWatchOutliveTheirTokens(t *testing.T) {
	e, cfg := startSecureEtcd(t)
	cli := e.newClientAs(clientv3.Config{TLS: cfg, Username: "game", Password: "play"})
	a := startServer(t, "a")
	reg := register(t, cli, a, registry.WithTTL(30*time.Second)) // asks every 10s
	b, err := registry.NewBuilder(cli, registry.WithProbeInterval(time.Minute))
	require.NoError(t, err)
	c := newChannelWith(t, b, stickybalancer.Config{})
	c.sees("a")

	idle := time.Now()
	within(t, 10*time.Second, func() bool { return time.Since(idle) > 3*tokenTTL*time.Second }, "the token is forgotten")
	require.NoError(t, reg.Update(bg, func(m *endpointsmeta.Meta) { m.Weight = 2 }))

	other := e.newClientAs(clientv3.Config{TLS: cfg, Username: "game", Password: "play"})
	_, err = other.Delete(bg, service+"/a")
	require.NoError(t, err)
	soon(t, func() bool { return len(listed(t, other)) == 1 }, "the record is back")
	register(t, other, startServer(t, "b"))
	c.sees("a", "b")
}

func TestARegistrationComesBackAfterASecureEtcdWasDown(t *testing.T) {
	e, cfg := startSecureEtcd(t)
	cli := e.newClientAs(clientv3.Config{TLS: cfg, Username: "game", Password: "play"})
	register(t, cli, startServer(t, "a"), registry.WithTTL(shortTTL))
	c := newChannel(t, cli, stickybalancer.Config{})
	c.sees("a")
	e.stop() // and with it all tokens
	down := time.Now()
	within(t, 10*time.Second, func() bool { return time.Since(down) > 2*shortTTL }, "the lease has ended")
	c.reaches("a", bg)
	e.start()
	other := e.newClientAs(clientv3.Config{TLS: cfg, Username: "game", Password: "play"})
	soon(t, func() bool { return len(listed(t, other)) == 1 }, "the record is back")
	register(t, other, startServer(t, "b"))
	c.sees("a", "b")
}

func TestAUserWithoutPermissionIsToldAtOnce(t *testing.T) {
	e, cfg := startSecureEtcd(t)
	cli := e.newClientAs(clientv3.Config{TLS: cfg, Username: "game", Password: "play"})
	_, err := registry.Register(bg, cli, "chat", "127.0.0.1:1", endpointsmeta.Meta{ID: "a"})
	require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
	_, err = registry.List(bg, cli, "chat")
	require.ErrorIs(t, err, rpctypes.ErrPermissionDenied)
}

// Who takes a right away says nothing of the server: it stays drained, and its log tells
// that nobody is heard. It hears again when the right is back.
func TestAServerWhoseUserMayNotReadItsOperatorAnyMoreKeepsTheLastWord(t *testing.T) {
	const words = "/homing/operator/" + service + "/"
	logs.on.Store(true)
	defer logs.on.Store(false)
	e, root := etcdWithUsers(t, map[string][]string{"server": {service + "/"}})
	told := func(what string) int { return strings.Count(logs.text(), what+` "`+words+`revoked"`) }
	grant := func() {
		_, err := root.RoleGrantPermission(bg, "server", words, clientv3.GetPrefixRangeEnd(words), clientv3.PermissionType(clientv3.PermRead))
		require.NoError(t, err)
	}
	grant()
	_, err := root.Put(bg, words+"revoked", `{"draining":true}`)
	require.NoError(t, err)
	reg := register(t, e.clientOf("server"), startServer(t, "revoked"), registry.WithTTL(shortTTL))
	require.Equal(t, registry.Draining, reg.State())

	for n := 1; n <= 2; n++ {
		_, err = root.RoleRevokePermission(bg, "server", words, clientv3.GetPrefixRangeEnd(words))
		require.NoError(t, err)
		within(t, 20*time.Second, func() bool { return told("may not read") == n }, "the log says so")
		_, err = root.Delete(bg, words+"revoked")
		require.NoError(t, err)
		at := time.Now()
		for time.Since(at) < 3*shortTTL { // two looks
			require.Equal(t, registry.Draining, reg.State())
			time.Sleep(20 * time.Millisecond)
		}
		require.Equal(t, n, told("may not read"), "once")
		grant()
		within(t, 20*time.Second, func() bool { return reg.State() == registry.Registered }, "it is lifted")
		require.Equal(t, n, told("may read"))

		_, err = root.Put(bg, words+"revoked", `{"draining":true}`)
		require.NoError(t, err)
		within(t, 20*time.Second, func() bool { return reg.State() == registry.Draining }, "it is heard")
	}
}
