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
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

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
was added, changed or removed (as it was); an operator's word shows as the change that it
makes. It goes on through outages of etcd, and says so on the standard error. In JSON each
line is a server as ls has it, with the event.

Examples:

   homing watch game
   homing watch -o json game | jq -c 'select(.event == "removed") | .id'`,
		Flags: []cli.Flag{plainFlag()},
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
				json: c.String("output") == "json"}
			return w.run(ctx)
		},
	}
}

type watching struct {
	*conn
	service    string
	out, notes io.Writer
	json       bool
	intents    bool              // may be read
	servers    map[string]server // as they were printed
}

func (w *watching) run(ctx context.Context) error {
	f, err := w.fleetOf(ctx, w.service, w.notes)
	if err != nil {
		return err // it may not be read, for one
	}
	w.intents = f.intents != nil
	if w.servers = make(map[string]server, len(f.servers)); len(f.servers) == 0 {
		fmt.Fprintf(w.notes, "homing: %s has no servers yet\n", w.named(w.service))
	}
	for _, s := range f.servers {
		if s.bad != nil || s.shadow {
			continue // as for clients
		}
		w.servers[s.key] = s
		if err := w.print("listed", &s); err != nil {
			return err
		}
	}
	var opts []registry.ListOption
	if w.plain {
		opts = append(opts, registry.WithPlainAddresses())
	}
	away := false
	for list, err := range registry.Watch(ctx, w.Client, w.service, opts...) {
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
	now := make(map[string]server, len(list))
	var news []server
	for _, i := range list {
		s, was := w.servers[i.Key]
		if !was || s.record.Addr != i.Addr || !s.record.Meta.Equal(i.Meta) {
			s = server{service: w.service, id: i.ID, key: i.Key, record: records.Record{Addr: i.Addr, Meta: i.Meta}}
			news = append(news, s)
		}
		now[s.key] = s
	}
	w.whole(ctx, news)
	for _, s := range news {
		now[s.key] = s
		what := "added"
		if old, was := w.servers[s.key]; was {
			if what = "changed"; old.record.Addr == s.record.Addr && old.record.Meta.Equal(s.record.Meta) {
				continue // it was read ahead of the list
			}
		}
		if err := w.print(what, &s); err != nil {
			return err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(w.servers)) {
		if _, is := now[key]; !is {
			if err := w.print("removed", new(w.servers[key])); err != nil {
				return err
			}
		}
	}
	w.servers = now
	return nil
}

// wholeAtOnce is how many servers are read in one transaction, of which etcd bounds the
// operations to 128.
const wholeAtOnce = 64

// whole reads what a list does not tell of servers: when they started, what operators say
// of them, and whether they heed that. What cannot be read stays unknown.
func (w *watching) whole(ctx context.Context, servers []server) {
	for some := range slices.Chunk(servers, wholeAtOnce) {
		var ops []clientv3.Op
		for _, s := range some {
			ops = append(ops, clientv3.OpGet(s.key))
			if w.intents {
				ops = append(ops, clientv3.OpGet(records.IntentPrefix+s.key))
			}
		}
		resp, err := w.txn(ctx, ops)
		if err != nil {
			return
		}
		for n := range some {
			s := &some[n]
			record := resp[0].GetResponseRange()
			if resp = resp[1:]; len(record.Kvs) > 0 {
				if r := read(s.service, s.id, record.Kvs[0], w.plain); r.bad == nil {
					*s = r
				}
			}
			if !w.intents {
				continue
			}
			said := resp[0].GetResponseRange()
			if resp = resp[1:]; len(said.Kvs) > 0 && s.revision > 0 {
				_, id, _ := records.Split(s.key)
				s.intent = new(readIntent(s.service, id, said.Kvs[0]))
			}
		}
	}
}

func (c *conn) txn(ctx context.Context, ops []clientv3.Op) ([]*pb.ResponseOp, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return nil, err
	}
	return resp.Responses, nil
}

func (w *watching) print(what string, s *server) error {
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
