package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// etcdWithUsers starts an etcd that has users with the password pw, each with a role of its
// name that may read and write these prefixes. It returns a client of root's, too.
func etcdWithUsers(t *testing.T, prefixes map[string][]string) (*etcd, *clientv3.Client) {
	t.Helper()
	e := newEtcd(t)
	// The race detector makes a hash of a password take seconds.
	e.adjust = func(cfg *embed.Config) { cfg.BcryptCost = 4 }
	e.start()
	cli := e.newClient()
	add := func(user string) {
		_, err := cli.RoleAdd(bg, user)
		require.NoError(t, err)
		_, err = cli.UserAdd(bg, user, "pw")
		require.NoError(t, err)
		_, err = cli.UserGrantRole(bg, user, user)
		require.NoError(t, err)
	}
	add("root")
	for user, may := range prefixes {
		add(user)
		for _, p := range may {
			_, err := cli.RoleGrantPermission(bg, user, p, clientv3.GetPrefixRangeEnd(p), clientv3.PermissionType(clientv3.PermReadWrite))
			require.NoError(t, err)
		}
	}
	_, err := cli.AuthEnable(bg)
	require.NoError(t, err)
	return e, e.clientOf("root")
}

func (e *etcd) clientOf(user string) *clientv3.Client {
	e.t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{e.client.Host}, Logger: zap.NewNop(),
		Username: user, Password: "pw", DialTimeout: 10 * time.Second})
	require.NoError(e.t, err)
	e.t.Cleanup(func() { cli.Close() })
	return cli
}

func TestTheUserComesFromFlagsOrTheEnvironment(t *testing.T) {
	e, root := etcdWithUsers(t, nil)
	put(t, root, service+"/a", `{"Addr":"h:1"}`)
	e.does("--user", "root:pw", "ls", service)
	e.does("--user", "root", "--password", "pw", "ls", service)

	for name, args := range map[string][]string{
		"a wrong password": {"--user", "root:no"},
		"an unknown user":  {"--user", "who:pw"},
	} {
		status, _, stderr := e.operate(append(args, "ls", service)...)
		require.Equal(t, 2, status, name)
		require.Regexp(t, `^homing: etcd does not let user "(root|who)" in: .*authentication failed.*\n$`, stderr, name)
	}
	status, _, stderr := e.operate("ls", service)
	require.Equal(t, 2, status)
	require.Contains(t, stderr, "etcd wants a user, by --user or ETCDCTL_USER")

	t.Setenv("ETCDCTL_USER", "root:pw")
	e.does("ls", service)
	t.Setenv("ETCDCTL_USER", "root")
	t.Setenv("ETCDCTL_PASSWORD", "pw")
	e.does("ls", service)
	status, _, _ = e.operate("--password", "no", "ls", service)
	require.Equal(t, 2, status, "flags win")
}

func TestEndpointsComeFromFlagsOrTheEnvironment(t *testing.T) {
	e := startEtcd(t)
	t.Setenv("ETCDCTL_ENDPOINTS", "http://"+e.client.Host+", 127.0.0.1:1")
	status, _, stderr := homing("ls", service)
	require.Zero(t, status, stderr)
	t.Setenv("ETCDCTL_ENDPOINTS", "127.0.0.1:1")
	e.does("ls", service)
	t.Setenv("ETCDCTL_DIAL_TIMEOUT", "300ms")
	start := time.Now()
	status, _, stderr = homing("ls", service)
	require.Equal(t, 2, status)
	require.Regexp(t, `^homing: etcd at 127.0.0.1:1 cannot be reached: .*connection refused\n$`, stderr)
	require.Less(t, time.Since(start), 5*time.Second)
}

// A host that takes connections, and says nothing.
func TestASilentEtcdIsOneLineInTime(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer lis.Close()
	start := time.Now()
	for _, user := range []string{"", "root:pw"} {
		status, stdout, stderr := homing("--endpoints", lis.Addr().String(), "--user", user, "--dial-timeout", "300ms", "check")
		require.Equal(t, 2, status)
		require.Empty(t, stdout)
		require.Regexp(t, `^homing: etcd at 127.0.0.1:\d+ cannot be reached: .*\n$`, stderr)
	}
	require.Less(t, time.Since(start), 5*time.Second)
}

func TestEtcdIsAskedOverTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	serverCert, serverKey := ca.issue("etcd")
	cert, key := ca.issue("operator")
	e := newEtcd(t)
	e.client.Scheme = "https"
	e.adjust = func(cfg *embed.Config) {
		cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile = serverCert, serverKey
		cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = ca.file, true
	}
	e.start()

	e.does("--cacert", ca.file, "--cert", cert, "--key", key, "ls", service)
	e.does("--insecure-skip-tls-verify", "--cert", cert, "--key", key, "ls", service)
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"another authority":   {[]string{"--cacert", other.file, "--cert", cert, "--key", key}, "certificate signed by unknown authority"},
		"no certificate":      {[]string{"--cacert", ca.file}, "cannot be reached"},
		"no TLS":              {nil, "cannot be reached"},
		"a file that is none": {[]string{"--cacert", key}, "cacert must hold a certificate in PEM"},
		"no file":             {[]string{"--cacert", "nowhere.pem"}, "cacert: open nowhere.pem"},
		"a key alone":         {[]string{"--key", key}, "cert and key must come together"},
	} {
		status, _, stderr := e.operate(append(tc.args, "--dial-timeout", "1s", "ls", service)...)
		require.Equal(t, 2, status, name)
		require.Contains(t, stderr, tc.want, name)
	}

	t.Setenv("ETCDCTL_CACERT", ca.file)
	t.Setenv("ETCDCTL_CERT", cert)
	t.Setenv("ETCDCTL_KEY", key)
	e.does("ls", service)
	status, _, _ := homing("--endpoints", "https://"+e.client.Host, "ls", service)
	require.Zero(t, status)
}

// authority signs certificates.
type authority struct {
	t    *testing.T
	file string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.file, _ = a.issue("ca")
	return a
}

// issue returns the files of a new certificate and its key.
func (a *authority) issue(name string) (cert, keyFile string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if a.cert == nil {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, c.KeyUsage|x509.KeyUsageCertSign
		a.cert, a.key = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	require.NoError(a.t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	require.NoError(a.t, err)
	return writeFile(a.t, name+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		writeFile(a.t, name+"-key.pem", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}))
}
