package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/homing-grpc/homing/endpointsmeta/registry"
	"github.com/homing-grpc/homing/internal/records"
)

// event is a change, in JSON.
type event struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"` // listed, added, changed or removed
	row
}

func watchCommand() *cli.Command {
	return &cli.Command{
		Name:      "watch",
		Usage:     "print the servers of a service, and what changes, until Ctrl-C",
		ArgsUsage: "SERVICE",
		Description: `The first lines are the servers that there are (listed). After that each is one that
was added, changed or removed. It goes on through outages of etcd, and says so on the
standard error.

Examples:

   homing watch game
   homing watch -o json game | jq -c 'select(.event == "removed") | .id'`,
		Action: func(ctx context.Context, c *cli.Command) error {
			service, err := optionalService(c)
			if err == nil {
				err = checkService(service, false)
			}
			if err != nil {
				return err
			}
			etcd, err := connect(ctx, c)
			if err != nil {
				return err
			}
			defer etcd.Close()
			w := &watching{conn: etcd, service: service, out: c.Root().Writer, notes: c.Root().ErrWriter,
				json: c.String("output") == "json", first: true}
			return w.run(ctx)
		},
	}
}

type watching struct {
	*conn
	service    string
	out, notes io.Writer
	json       bool
	first      bool // nothing has been listed yet
	servers    map[string]server
}

func (w *watching) run(ctx context.Context) error {
	if _, err := w.fleetOf(ctx, w.service, w.notes); err != nil {
		return err // it may not be read, for one
	}
	away := false
	for list, err := range registry.Watch(ctx, w.Client, w.service) {
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !away:
			away = true
			fmt.Fprintln(w.notes, "homing: still watching:", err)
		case err != nil:
		default:
			if away {
				away = false
				fmt.Fprintln(w.notes, "homing: etcd answers again")
			}
			if err := w.take(ctx, list); err != nil {
				return err
			}
		}
	}
	return nil
}

// take prints what is new in a list.
func (w *watching) take(ctx context.Context, list []registry.Instance) error {
	f := &fleet{}
	for _, i := range list {
		f.servers = append(f.servers, server{service: w.service, id: i.ID, key: i.Key,
			record: records.Record{Addr: i.Addr, Meta: i.Meta}, listed: true})
	}
	// Who may not read it has been told, and while etcd is away nobody need be.
	_ = w.intents(ctx, f, w.service, io.Discard)
	now := make(map[string]server, len(f.servers))
	for _, s := range f.servers {
		now[s.key] = s
		old, was := w.servers[s.key]
		what := ""
		switch {
		case w.first:
			what = "listed"
		case !was:
			what = "added"
		case old.record.Addr != s.record.Addr || !old.record.Meta.Equal(s.record.Meta):
			what = "changed"
		default:
			continue
		}
		if err := w.print(what, s); err != nil {
			return err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(w.servers)) {
		if _, is := now[key]; !is {
			if err := w.print("removed", w.servers[key]); err != nil {
				return err
			}
		}
	}
	w.servers, w.first = now, false
	return nil
}

func (w *watching) print(what string, s server) error {
	at := time.Now()
	if w.json {
		e := json.NewEncoder(w.out) // one line, or else as all JSON
		e.SetEscapeHTML(false)
		return e.Encode(event{at, what, s.row()})
	}
	_, err := fmt.Fprintf(w.out, "%s  %-7s  %s  %s  weight %d  zone %s  %s\n", at.Format(time.TimeOnly), what,
		printable(s.id), printable(s.record.Addr), s.weight(), printable(cmp.Or(s.record.Meta.Zone, "-")), s.state())
	return err
}
