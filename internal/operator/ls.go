package operator

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/homing-grpc/homing/internal/records"
)

var tableHeader = []string{"SERVICE", "ID", "ADDRESS", "WEIGHT", "ZONE", "STATE", "AGE"}

func lsCommand() *cli.Command {
	return &cli.Command{
		Name:      "ls",
		Usage:     "list the servers of a service, or of all",
		ArgsUsage: "[SERVICE]",
		Description: `STATE is what etcd knows: registered, draining (the server says so), draining
(operator), registered (operator not heeded), bad record, or passed over: clients do so
with a record that names no id, if another one of the same address does. AGE is since the
server registered, by its own clock; - if its record does not say, as one of other code.

Without a service, all keys of etcd are read to find them. With --plain-addresses, keys
that hold addresses of something else are taken for servers, too: name the service.

Examples:

   homing ls
   homing ls game
   homing ls -o json game | jq -r '.[] | select(.draining) | .id'`,
		Flags: []cli.Flag{plainFlag()},
		Action: func(ctx context.Context, c *cli.Command) error {
			etcd, f, err := askedFor(ctx, c)
			if err != nil {
				return err
			}
			defer etcd.Close()
			if len(f.servers) == 0 {
				etcd.noServers(c, f.service)
			}
			out := c.Root().Writer
			if c.String("output") == "json" {
				rows := make([]row, len(f.servers))
				for i := range f.servers {
					rows[i] = f.servers[i].row()
				}
				return printJSON(out, rows)
			}
			var rows [][]string
			for i := range f.servers {
				rows = append(rows, f.servers[i].cells())
			}
			return printTable(out, tableHeader, rows)
		},
	}
}

// plainFlag is registry.WithPlainAddresses.
func plainFlag() cli.Flag {
	return &cli.BoolFlag{Name: "plain-addresses", Usage: "also read records that are nothing but host:port, as clients with WithPlainAddresses do",
		Sources: cli.EnvVars("HOMING_PLAIN_ADDRESSES")}
}

// noServers tells somebody who may have mistyped a name.
func (c *conn) noServers(cmd *cli.Command, service string) {
	if cmd.String("output") != "json" {
		fmt.Fprintf(cmd.Root().ErrWriter, "homing: %s has no servers\n", c.named(service))
	}
}

// askedFor is etcd, and the fleet in it that a command is about. The caller closes etcd.
func askedFor(ctx context.Context, c *cli.Command) (*conn, *fleet, error) {
	service, err := optionalService(c)
	if err != nil {
		return nil, nil, err
	}
	etcd, err := connect(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	f, err := etcd.fleetOf(ctx, service, c.Root().ErrWriter)
	if err != nil {
		etcd.Close()
		return nil, nil, err
	}
	return etcd, f, nil
}

// optionalService is the service of a command that takes one as its argument, or by -s,
// or none: then it is "".
func optionalService(c *cli.Command) (string, error) {
	args, err := arguments(c, 0, 1)
	if err != nil {
		return "", err
	}
	if len(args) == 0 {
		return c.String("service"), checkService(c.String("service"), true)
	}
	return args[0], checkService(args[0], false)
}

func checkService(service string, optional bool) error {
	if service == "" && !optional {
		return errors.New("service must be named, by -s or HOMING_SERVICE")
	}
	if strings.HasSuffix(service, "/") {
		return fmt.Errorf("service must be a name that does not end with a slash, got %q", service)
	}
	if strings.HasPrefix(service+"/", records.IntentPrefix) {
		return fmt.Errorf("service must not be where operators' words are, got %q", service)
	}
	return nil
}

// one is the server that a command is about: ID by -s, or SERVICE/ID.
func one(c *cli.Command, arg string) (service, id string, err error) {
	service, id = c.String("service"), arg
	if i := strings.LastIndexByte(arg, '/'); i >= 0 {
		service, id = arg[:i], arg[i+1:] // an id has no slash
	}
	if id == "" {
		return "", "", fmt.Errorf("id must be ID or SERVICE/ID, got %q", arg)
	}
	if service == "" {
		return "", "", fmt.Errorf("service of %q must be named, by -s, HOMING_SERVICE or as SERVICE/%s", id, id)
	}
	return service, id, checkService(service, false)
}
