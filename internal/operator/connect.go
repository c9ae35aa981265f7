package operator

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v3"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// etcdFlags are etcdctl's, with its names, defaults and environment.
func etcdFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "endpoints", Usage: "addresses of etcd, split by commas", Value: []string{"127.0.0.1:2379"},
			Sources: cli.EnvVars("ETCDCTL_ENDPOINTS")},
		&cli.StringFlag{Name: "cacert", Usage: "file of the CA that has signed etcd's certificates", Sources: cli.EnvVars("ETCDCTL_CACERT")},
		&cli.StringFlag{Name: "cert", Usage: "file of this client's certificate", Sources: cli.EnvVars("ETCDCTL_CERT")},
		&cli.StringFlag{Name: "key", Usage: "file of this client's key", Sources: cli.EnvVars("ETCDCTL_KEY")},
		&cli.BoolFlag{Name: "insecure-skip-tls-verify", Usage: "take any certificate of etcd's", Sources: cli.EnvVars("ETCDCTL_INSECURE_SKIP_TLS_VERIFY")},
		&cli.StringFlag{Name: "user", Usage: "name or name:password", Sources: cli.EnvVars("ETCDCTL_USER")},
		&cli.StringFlag{Name: "password", Usage: "of the user; other users of the machine can see flags, and not the environment", Sources: cli.EnvVars("ETCDCTL_PASSWORD")},
		&cli.DurationFlag{Name: "dial-timeout", Usage: "to connect", Value: 2 * time.Second, Sources: cli.EnvVars("ETCDCTL_DIAL_TIMEOUT"), Validator: positive},
		&cli.DurationFlag{Name: "command-timeout", Usage: "of each request", Value: 5 * time.Second, Sources: cli.EnvVars("ETCDCTL_COMMAND_TIMEOUT"), Validator: positive},
	}
}

func positive(d time.Duration) error {
	if d <= 0 {
		return fmt.Errorf("timeout must be positive, got %v", d)
	}
	return nil
}

// conn is a connection to etcd.
type conn struct {
	*clientv3.Client
	timeout   time.Duration // of one request
	namespace string        // before all keys; it is in no key here
	plain     bool          // a bare address is a record, too
}

// connect returns a connection that works.
func connect(ctx context.Context, c *cli.Command) (*conn, error) {
	cfg, err := config(c)
	if err != nil {
		return nil, err
	}
	// An etcd that is away is told of by who has no user, for the client of one who has
	// asks for a token first, and says only that it has got none in time.
	open := cfg
	open.Username, open.Password = "", ""
	cli, err := clientv3.New(open)
	if err != nil {
		return nil, fmt.Errorf("etcd at %s: %w", strings.Join(cfg.Endpoints, ", "), err)
	}
	if err := reach(ctx, cli, cfg.DialTimeout); err != nil {
		cli.Close()
		return nil, fmt.Errorf("etcd at %s cannot be reached: %w", strings.Join(cfg.Endpoints, ", "), err)
	}
	if cfg.Username != "" {
		cli.Close()
		if cli, err = clientv3.New(cfg); err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("no answer in %v", cfg.DialTimeout)
			}
			return nil, fmt.Errorf("etcd does not let user %q in: %w", shown(cfg.Username), err)
		}
	}
	within := c.String("namespace")
	if within != "" {
		enter(cli, within)
	}
	return &conn{cli, c.Duration("command-timeout"), within, c.Bool("plain-addresses")}, nil
}

// enter has all keys of a client begin with a prefix, which it does not show.
func enter(cli *clientv3.Client, prefix string) {
	cli.KV = namespace.NewKV(cli.KV, prefix)
	cli.Watcher = namespace.NewWatcher(cli.Watcher, prefix)
	cli.Lease = namespace.NewLease(cli.Lease, prefix)
}

func config(c *cli.Command) (clientv3.Config, error) {
	cfg := clientv3.Config{
		Endpoints:            c.StringSlice("endpoints"),
		DialTimeout:          c.Duration("dial-timeout"),
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second},
		})},
	}
	for i, e := range cfg.Endpoints {
		if cfg.Endpoints[i] = strings.TrimSpace(e); cfg.Endpoints[i] == "" {
			return cfg, fmt.Errorf("endpoints must be addresses, split by commas, got %q", strings.Join(c.StringSlice("endpoints"), ","))
		}
	}
	var err error
	if cfg.Username, cfg.Password, err = user(c.String("user"), c.String("password")); err != nil {
		return cfg, err
	}
	cfg.TLS, err = tlsConfig(c.String("cacert"), c.String("cert"), c.String("key"), c.Bool("insecure-skip-tls-verify"))
	return cfg, err
}

func user(user, password string) (string, string, error) {
	if user == "" {
		return "", "", nil
	}
	name, inner, ok := strings.Cut(user, ":")
	if !ok || password != "" { // as etcdctl: with a password of its own, the name may have colons
		name, inner = user, password
	}
	if name == "" || inner == "" {
		return "", "", fmt.Errorf("user must have a password, by --user name:password, --password or ETCDCTL_PASSWORD, got user %q", name)
	}
	return name, inner, nil
}

// shown is a user's name without what is after a colon: with ETCDCTL_PASSWORD beside
// --user name:password, that is a password.
func shown(user string) string {
	if name, _, ok := strings.Cut(user, ":"); ok {
		return name + ":..."
	}
	return user
}

func tlsConfig(cacert, cert, key string, skipVerify bool) (*tls.Config, error) {
	if cacert == "" && cert == "" && key == "" && !skipVerify {
		return nil, nil // endpoints that begin with https:// have TLS all the same
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: skipVerify}
	if cacert != "" {
		pem, err := os.ReadFile(cacert)
		if err != nil {
			return nil, fmt.Errorf("cacert: %w", err)
		}
		if cfg.RootCAs = x509.NewCertPool(); !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("cacert must hold a certificate in PEM, got %q", cacert)
		}
	}
	if (cert == "") != (key == "") {
		return nil, fmt.Errorf("cert and key must come together, got cert %q and key %q", cert, key)
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("cert and key: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// reach waits until a member of etcd answers, and says why none does. The client itself
// would wait in silence.
func reach(ctx context.Context, cli *clientv3.Client, timeout time.Duration) error {
	outer := ctx
	ctx, cancel := context.WithTimeout(outer, timeout)
	defer cancel()
	maintenance := pb.NewMaintenanceClient(cli.ActiveConnection())
	why := fmt.Errorf("no answer in %v", timeout)
	for {
		_, err := maintenance.Status(ctx, &pb.StatusRequest{}, grpc.WaitForReady(false))
		switch status.Code(err) {
		case codes.Unavailable:
			why = reason(err)
		case codes.DeadlineExceeded, codes.Canceled:
		default:
			return nil // whatever it says, it is there
		}
		select {
		case <-ctx.Done():
			return cmp.Or(outer.Err(), why) // it was interrupted
		case <-time.After(100 * time.Millisecond):
			cli.ActiveConnection().ResetConnectBackoff()
		}
	}
}

// reason is what gRPC has packed.
func reason(err error) error {
	_, desc, ok := strings.Cut(status.Convert(err).Message(), `desc = "`)
	if !ok {
		return errors.New(status.Convert(err).Message())
	}
	return errors.New(strings.TrimPrefix(strings.TrimSuffix(desc, `"`), "transport: "))
}

// explain makes an error of a request one that says what to do.
func (c *conn) explain(err error, what string) error {
	switch {
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Errorf("%s: the etcd user %q may not: %w", what, shown(c.Username), err)
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return fmt.Errorf("%s: etcd wants a user, by --user or ETCDCTL_USER: %w", what, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: no answer from etcd at %s in %v", what, strings.Join(c.Endpoints(), ", "), c.timeout)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// named is a service, or etcd if it is "", to be told of.
func (c *conn) named(service string) string {
	name := "etcd"
	if service != "" {
		name = strconv.Quote(service)
	}
	if c.namespace != "" {
		name += fmt.Sprintf(" in the namespace %q", c.namespace)
	}
	return name
}

// get reads keys.
func (c *conn) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.Get(ctx, key, opts...)
	if err != nil {
		return nil, c.explain(err, fmt.Sprintf("reading %q", c.namespace+key))
	}
	return resp, nil
}

// pageKeys is how many keys are read at once.
const pageKeys = 1000

// each calls take with all keys that begin with prefix, in order, as they were at a
// revision of etcd, 0 for now; it returns that. A page is taken at a time, for there may be
// many. After each it calls page with the last key, if that is not nil.
func (c *conn) each(ctx context.Context, prefix string, revision int64, take func(*mvccpb.KeyValue), page func(last string)) (int64, error) {
	from := cmp.Or(prefix, "\x00")
	for {
		resp, err := c.get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)),
			clientv3.WithLimit(pageKeys), clientv3.WithRev(revision))
		if err != nil {
			return 0, err
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			take(kv)
		}
		if len(resp.Kvs) == 0 || !resp.More {
			return revision, nil
		}
		last := string(resp.Kvs[len(resp.Kvs)-1].Key)
		if page != nil {
			page(last)
		}
		from = last + "\x00"
	}
}
