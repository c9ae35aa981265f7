package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/urfave/cli/v3"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/stickybalancer"
)

// whereRow is a server in the order of a key, in JSON.
type whereRow struct {
	Place string `json:"place"`
	row
}

func whereCommand() *cli.Command {
	return &cli.Command{
		Name:      "where",
		Usage:     "tell where a key lives: its home, and the next two",
		ArgsUsage: "-s SERVICE KEY",
		Description: `The home is where calls by the key go, and the next ones are where they go when those
before have left, by the balancer's own code. It knows of etcd only: a client that
cannot reach the home, or a session that lives elsewhere, goes elsewhere.

Examples:

   homing where -s game player-7
   HOMING_SERVICE=game homing where -o json player-7 | jq -r '.[0].id'
   homing where -s game game-1    # who takes over calls by that id when game-1 is gone`,
		Flags: []cli.Flag{plainFlag()},
		Action: func(ctx context.Context, c *cli.Command) error {
			args, err := arguments(c, 1, 1)
			if err != nil {
				return err
			}
			if args[0] == "" {
				return errors.New(`key must not be empty, got ""`)
			}
			service := c.String("service")
			if err := checkService(service, false); err != nil {
				return err
			}
			etcd, err := connect(ctx, c)
			if err != nil {
				return err
			}
			defer etcd.Close()
			f, err := etcd.fleetOf(ctx, service, c.Root().ErrWriter)
			if err != nil {
				return err
			}
			return printWhere(c, etcd.named(service), f.order(args[0], 3))
		},
	}
}

// order returns the first servers in the order of a key.
func (f *fleet) order(key string, most int) (order []server) {
	var endpoints []resolver.Endpoint
	for _, s := range f.servers {
		if s.bad == nil && !s.shadow {
			endpoints = append(endpoints, s.endpoint())
		}
	}
	homes := stickybalancer.Order(key, endpoints)
	for _, ep := range homes[:min(len(homes), most)] {
		i := slices.IndexFunc(f.servers, func(s server) bool {
			return s.bad == nil && !s.shadow && s.record.Addr == ep.Addresses[0].Addr &&
				endpointsmeta.FromEndpoint(s.endpoint()).Equal(endpointsmeta.FromEndpoint(ep))
		})
		order = append(order, f.servers[i])
	}
	return order
}

func printWhere(c *cli.Command, service string, order []server) error {
	if len(order) == 0 {
		return unheeded{fmt.Errorf("%s has no servers, so the key has no home", service)}
	}
	var table [][]string
	var rows []whereRow
	for i, s := range order {
		place := "next"
		if i == 0 {
			place = "home"
		}
		table = append(table, append([]string{place}, s.cells()...))
		rows = append(rows, whereRow{place, s.row()})
	}
	if c.String("output") == "json" {
		return printJSON(c.Root().Writer, rows)
	}
	return printTable(c.Root().Writer, append([]string{"PLACE"}, tableHeader...), table)
}
