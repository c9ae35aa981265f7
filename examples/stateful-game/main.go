// Command stateful-game is a small game whose servers keep their part of the
// world in memory, so that a player's calls must reach the one server that knows
// them.
//
// Without flags it runs everything in one process (an etcd, servers, players),
// cuts, drains, kills and adds, and tells what happened to whom. With -http it goes
// on, as a page with buttons for all that. With other flags it is one server or one
// player against an etcd of yours. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homing-grpc/homing/endpointsmeta/registry"
)

// Exit statuses.
const (
	exitOK    = 0
	exitWrong = 1 // something moved or failed that should not have
	exitUsage = 2 // a bad flag, or no etcd
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options is what the flags say.
type options struct {
	role    string
	etcd    []string
	service string
	id      string
	addr    string
	name    string
	every   time.Duration
	http    string
}

// flagRoles says which roles have a use for a flag. Those not listed are for all.
var flagRoles = map[string][]string{
	"id":    {"server", "client"},
	"addr":  {"server"},
	"name":  {"client"},
	"every": {"client"},
	"http":  {"demo"},
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	code := exitUsage
	if err == nil {
		code, err = o.run(ctx, stdout)
	}
	if err != nil {
		fmt.Fprintf(stderr, "stateful-game: %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
	}
	return code
}

func parse(args []string, help io.Writer) (*options, error) {
	o := new(options)
	var etcd string
	fs := flag.NewFlagSet("stateful-game", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // run says what is wrong, in one line
	fs.StringVar(&o.role, "role", "demo", "`what` to run: demo, server or client")
	fs.StringVar(&etcd, "etcd", "", "comma separated `endpoints` of etcd; the demo starts one of its own without")
	fs.StringVar(&o.service, "service", "stateful-game", "`name` that the servers register under")
	fs.StringVar(&o.id, "id", "", "server: its `id`. client: the id of the server to come back to")
	fs.StringVar(&o.addr, "addr", "127.0.0.1:0", "server: `host:port` to listen on, as clients reach it")
	fs.StringVar(&o.name, "name", "player", "client: the player's `name`")
	fs.DurationVar(&o.every, "every", time.Second, "client: `time` between calls")
	fs.StringVar(&o.http, "http", "", "demo: `host:port` to show a game that goes on, as a page with buttons; without, five scenes are played")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fs.SetOutput(help)
		fmt.Fprintln(help, "Usage of stateful-game:")
		fs.PrintDefaults()
		return nil, err
	case err != nil:
		return nil, err
	case fs.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}

	if !slices.Contains([]string{"demo", "server", "client"}, o.role) {
		return nil, fmt.Errorf("-role must be demo, server or client, got %q", o.role)
	}
	var err error
	fs.Visit(func(f *flag.Flag) {
		if roles, ok := flagRoles[f.Name]; ok && !slices.Contains(roles, o.role) && err == nil {
			err = fmt.Errorf("-%s has no meaning with -role %s", f.Name, o.role)
		}
		if f.Name == "etcd" {
			o.etcd = strings.Split(etcd, ",")
		}
		if f.Name == "http" && err == nil {
			err = checkHTTP(o.http)
		}
	})
	host, _, addrErr := net.SplitHostPort(o.addr)
	switch ip := net.ParseIP(host); {
	case err != nil:
	case o.role != "demo" && o.etcd == nil:
		err = fmt.Errorf("-role %s needs -etcd", o.role)
	case o.http != "" && o.etcd != nil:
		err = fmt.Errorf("-etcd has no meaning with -http, which stops and starts an etcd of its own, got %q", etcd)
	case slices.Contains(o.etcd, ""):
		err = fmt.Errorf("-etcd must be comma separated endpoints, got %q", etcd)
	case o.service == "" || strings.Trim(o.service, "/") != o.service:
		err = fmt.Errorf("-service must be a name that does not begin or end with a slash, got %q", o.service)
	case o.role == "server" && o.id == "":
		err = errors.New("-role server needs -id")
	case addrErr != nil:
		err = fmt.Errorf("-addr must be host:port, got %q", o.addr)
	case host == "" || ip.IsUnspecified():
		err = fmt.Errorf("-addr must name a host that clients can reach, got %q", o.addr)
	case o.name == "":
		err = errors.New("-name must not be empty")
	case o.every <= 0:
		err = fmt.Errorf("-every must be more than 0, got %v", o.every)
	}
	return o, err
}

func checkHTTP(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("-http must be host:port, like 127.0.0.1:8080 or :8080, got %q", addr)
	}
	return nil
}

// run returns the exit status, and what to say on stderr about it.
func (o *options) run(ctx context.Context, out io.Writer) (int, error) {
	if o.http != "" {
		return runLive(ctx, out, o.http, o.service)
	}
	if o.role == "demo" {
		return o.runDemo(ctx, out)
	}
	cli, err := connectEtcd(ctx, o.etcd)
	if err != nil {
		return exitUsage, err
	}
	defer cli.Close()
	if o.role == "server" {
		return o.runServer(ctx, out, cli)
	}
	return failed(runClient(ctx, out, cli, o.service, o.name, o.id, o.every))
}

func (o *options) runServer(ctx context.Context, out io.Writer, cli *clientv3.Client) (int, error) {
	lis, err := net.Listen("tcp", o.addr)
	if err != nil {
		return exitUsage, err
	}
	fmt.Fprintf(out, "server %s listens on %s\n", o.id, lis.Addr())
	// Registered, draining, closed; and lost, if etcd should forget it.
	notify := registry.WithNotify(func(s registry.State) { fmt.Fprintf(out, "server %s is %v\n", o.id, s) })
	return failed(serve(ctx, cli, o.service, o.id, lis, notify))
}

func (o *options) runDemo(ctx context.Context, out io.Writer) (int, error) {
	endpoints := o.etcd
	if endpoints == nil {
		endpoint, stop, err := startEtcd()
		if err != nil {
			return exitWrong, err
		}
		defer stop()
		endpoints = []string{endpoint}
	} else {
		// Not among servers that others may have there.
		o.service = fmt.Sprintf("%s-demo-%d", o.service, os.Getpid())
		cli, err := connectEtcd(ctx, endpoints)
		if err != nil {
			return exitUsage, err
		}
		cli.Close()
	}
	return failed(runDemo(ctx, out, endpoints, o.service))
}

func failed(err error) (int, error) {
	if err != nil {
		return exitWrong, err
	}
	return exitOK, nil
}
