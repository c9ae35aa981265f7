package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v3"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/internal/records"
)

const sayHelp = `

The word stands in etcd, beside the record, until it is lifted: it outlives restarts of
the server. The server heeds it, on top of what it says of itself; each lifts only its
own. The command waits until the record shows it, and exits with 1 if it does not: then
the server has left, hangs, is cut off from etcd, is of a release that does not know of it,
its etcd user may not read ` + records.IntentPrefix + `, or --namespace is not its own. What
was said, or lifted, stands all the same.

The record of a server that is registered by other code is changed itself, for nobody
else does.`

const absentHelp = `

A server that is not there is taken for a slip of the pen. With --absent the word is said
all the same, for one that is restarting, say: it heeds that from its start.
A word that waits for an hour is a finding of homing check.`

func drainCommand() *cli.Command {
	return &cli.Command{
		Name: "drain", Usage: "have a server keep what it has and take nothing new", ArgsUsage: "ID | SERVICE/ID",
		Description: "What the server says of itself is not touched: if it drains by its own word, it drains on after undrain." + sayHelp + absentHelp + `

Examples:

   homing drain -s game game-1
   homing drain game/game-1 --wait 1m
   homing drain game/game-1 --absent    # it is restarting, and is to drain then`,
		Flags: []cli.Flag{waitFlag(), absentFlag()}, ShellComplete: completeIDs,
		Action: func(ctx context.Context, c *cli.Command) error {
			return say(ctx, c, 1, word{
				later:  "will drain",
				lift:   "undrain %s",
				intent: func(i *records.Intent) { i.Draining = true },
				record: func(m map[string]json.RawMessage) { m["draining"] = json.RawMessage("true") },
				done:   func(*server) string { return "drains" },
			})
		},
	}
}

func undrainCommand() *cli.Command {
	return &cli.Command{
		Name: "undrain", Usage: "lift the operator's drain", ArgsUsage: "ID | SERVICE/ID",
		Description: "A server that drains by its own word drains on. Lifting the word on a server that has gone works, too." + sayHelp + `

Examples:

   homing undrain -s game game-1
   homing undrain game/game-1`,
		Flags: []cli.Flag{waitFlag()}, ShellComplete: completeIDs,
		Action: func(ctx context.Context, c *cli.Command) error {
			return say(ctx, c, 1, word{
				lifts:  true,
				intent: func(i *records.Intent) { i.Draining = false },
				record: func(m map[string]json.RawMessage) { delete(m, "draining") },
				done: func(s *server) string {
					if s.record.Meta.Draining {
						return "still drains: it says so itself, and only it can lift that"
					}
					return "takes new work"
				},
			})
		},
	}
}

func weightCommand() *cli.Command {
	return &cli.Command{
		Name: "weight", Usage: "set a server's weight, or give it back", ArgsUsage: "ID | SERVICE/ID  [N]",
		Description: "N is from 1 to 4294967295, relative to the other servers' weights, which are 1 if they say nothing." + sayHelp + absentHelp + `

Examples:

   homing weight game/game-1 3
   homing weight game/game-1 --reset    # the server's own again`,
		Flags: []cli.Flag{waitFlag(), absentFlag(), &cli.BoolFlag{Name: "reset", Usage: "the weight is the server's own again"}}, ShellComplete: completeIDs,
		Action: func(ctx context.Context, c *cli.Command) error {
			if c.Bool("reset") {
				return say(ctx, c, 1, word{
					lifts:  true,
					intent: func(i *records.Intent) { i.Weight = 0 },
					record: func(m map[string]json.RawMessage) { delete(m, "weight") },
					done:   func(s *server) string { return fmt.Sprintf("has weight %d", s.weight()) },
				})
			}
			args, err := arguments(c, 2, 2)
			if err != nil {
				return err
			}
			n, err := strconv.ParseUint(args[1], 10, 32)
			if err != nil || n == 0 {
				return fmt.Errorf("weight must be a whole number from 1 to 4294967295, got %q (drain a server that is to take nothing, --reset gives the weight back)", args[1])
			}
			return say(ctx, c, 2, word{
				later:  fmt.Sprintf("will have weight %d", n),
				lift:   "weight %s --reset",
				intent: func(i *records.Intent) { i.Weight = uint32(n) },
				record: func(m map[string]json.RawMessage) { m["weight"] = json.RawMessage(args[1]) },
				done:   func(s *server) string { return fmt.Sprintf("has weight %d", s.weight()) },
			})
		},
	}
}

func waitFlag() cli.Flag {
	return &cli.DurationFlag{Name: "wait", Usage: "for the server to heed it; 0: not at all", Value: 5 * time.Second, Validator: func(d time.Duration) error {
		if d < 0 {
			return fmt.Errorf("wait must not be negative, got %v", d)
		}
		return nil
	}}
}

func absentFlag() cli.Flag {
	return &cli.BoolFlag{Name: "absent", Usage: "say it of a server that is not registered, too: it heeds that from its start"}
}

// word is what an operator has to say of a server.
type word struct {
	intent func(*records.Intent)
	record func(map[string]json.RawMessage) // for metadata of other code
	lifts  bool                             // it makes sense without a server
	later  string                           // what a server will do that is not there yet
	lift   string                           // how to lift that
	done   func(*server) string             // what the server does then
}

// say says it, and waits until the server heeds it.
func say(ctx context.Context, c *cli.Command, args int, w word) error {
	given, err := arguments(c, args, args)
	if err != nil {
		return err
	}
	service, id, err := one(c, given[0])
	if err != nil {
		return err
	}
	etcd, err := connect(ctx, c)
	if err != nil {
		return err
	}
	defer etcd.Close()
	s, err := etcd.find(ctx, service, id)
	if err != nil {
		return err
	}
	report := func(what string) error {
		if c.String("output") == "json" {
			return printJSON(c.Root().Writer, s.row())
		}
		_, err := fmt.Fprintf(c.Root().Writer, "%s %s\n", printable(id), what)
		return err
	}
	switch {
	case s == nil && !w.lifts && !c.Bool("absent"):
		return fmt.Errorf("%s has no server with the id %q: see homing ls %s, or say it with --absent of one that is to come", etcd.named(service), id, service)
	case s == nil:
		if err := (endpointsmeta.Meta{ID: id}).Validate(); err != nil && !w.lifts {
			return err // no server can be of that id
		}
		s = &server{service: service, id: id, key: service + "/" + id, gone: true}
	case s.record.Plain && !w.lifts:
		return unheeded{fmt.Errorf("the record %q is a plain address, which has no place for what operators say, and its server does not read it elsewhere", s.key)}
	case s.bad != nil && !w.lifts:
		return unheeded{fmt.Errorf("the record %q makes no sense: %w", s.key, s.bad)}
	case !s.record.Owned():
		if w.lifts {
			if err := etcd.unsay(ctx, s, id, w); err != nil {
				return err
			}
		}
		if s.record.Plain {
			return report("has a record that is a plain address; what was said of it is lifted")
		}
		if s.bad != nil {
			return report("has a record that makes no sense; what was said of it is lifted")
		}
		if s, err = etcd.rewrite(ctx, s, w); err != nil {
			return err
		}
		return report(w.done(s) + " (its record is of other code, and was changed itself: whoever writes it next may undo that)")
	default:
		_, id, _ = records.Split(s.key)
	}
	if s.intent, err = etcd.want(ctx, service, id, w); err != nil {
		return err
	}
	wait := c.Duration("wait")
	switch {
	case s.gone && w.lifts:
		return report("is not registered; what was said of it is lifted")
	case s.gone:
		return report(fmt.Sprintf("is not registered; it %s from when it registers, by homing's registry, until homing %s",
			w.later, fmt.Sprintf(w.lift, printable(s.key))))
	}
	if wait == 0 {
		return report("has been told; --wait 0 does not wait until it heeds that")
	}
	if s, err = etcd.await(ctx, s, w, wait); err != nil {
		return err
	}
	return report(w.done(s))
}

// unsay lifts what was said of a server, while it had a registration that heeds it.
func (c *conn) unsay(ctx context.Context, s *server, id string, w word) error {
	_, tail, _ := records.Split(s.key)
	for _, id := range slices.Compact([]string{id, tail}) {
		// Who may not read it, and nothing is said, has the right to lift that, too.
		if i, err := c.intent(ctx, s.service, id); err != nil || i.revision == 0 {
			continue
		}
		if _, err := c.want(ctx, s.service, id, w); err != nil {
			return err
		}
	}
	return nil
}

// find returns the server with an id, without what is said of it; nil if there is none.
func (c *conn) find(ctx context.Context, service, id string) (*server, error) {
	resp, err := c.get(ctx, service+"/"+id)
	if err != nil {
		return nil, err
	}
	if len(resp.Kvs) > 0 {
		return new(read(service, id, resp.Kvs[0], true)), nil
	}
	var found []server // its key is not its id: it is of other code
	_, err = c.each(ctx, service+"/", 0, func(kv *mvccpb.KeyValue) {
		if in, tail, ok := records.Split(string(kv.Key)); ok && in == service {
			if s := read(service, tail, kv, true); s.id == id {
				found = append(found, s)
			}
		}
	}, nil)
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0:
		return nil, nil
	case len(found) > 1:
		return nil, unheeded{fmt.Errorf("id %q is held by several records, %q and %q: see homing check %s", id, found[0].key, found[1].key, service)}
	}
	return &found[0], nil
}

// intent returns what is said of a server; its revision is 0 if that is nothing.
func (c *conn) intent(ctx context.Context, service, id string) (*intent, error) {
	resp, err := c.get(ctx, records.IntentKey(service, id))
	if err != nil {
		return nil, err
	}
	i := &intent{service: service, id: id}
	if len(resp.Kvs) > 0 {
		*i = readIntent(service, id, resp.Kvs[0])
	}
	return i, nil
}

// errRaced says that somebody else was faster.
var errRaced = errors.New("somebody else is changing it, too")

// raced tries again what somebody else was faster with.
func raced(try func() error) error {
	for range 10 {
		if err := try(); !errors.Is(err, errRaced) {
			return err
		}
	}
	return errRaced
}

// want writes the intent for a server, and returns it, nil if it is none.
func (c *conn) want(ctx context.Context, service, id string, w word) (now *intent, err error) {
	key := records.IntentKey(service, id)
	return now, raced(func() error {
		i, err := c.intent(ctx, service, id)
		if err != nil {
			return err
		}
		said := w.stands(i)
		w.intent(&i.Intent)
		if now = i; i.revision == 0 && i.Empty() {
			now = nil
		}
		if said && i.bad == nil {
			return nil
		}
		op := clientv3.OpDelete(key)
		if !i.Empty() {
			i.Since = time.Now().UTC().Truncate(time.Second)
			value, err := json.Marshal(i.Intent)
			if err != nil {
				return err
			}
			op = clientv3.OpPut(key, string(value))
		}
		i.revision, err = c.swap(ctx, key, i.revision, op)
		if i.bad = nil; i.Empty() {
			now = nil
		}
		return err
	})
}

// stands reports whether it is said already.
func (w word) stands(i *intent) bool {
	said := i.Intent
	w.intent(&said)
	return said.Draining == i.Draining && said.Weight == i.Weight
}

// swap does op if the key is of a revision, and returns the new one.
func (c *conn) swap(ctx context.Context, key string, revision int64, op clientv3.Op) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).Then(op).Commit()
	switch {
	case err != nil:
		return 0, c.explain(err, fmt.Sprintf("writing %q", c.namespace+key))
	case !resp.Succeeded:
		return 0, errRaced
	}
	return resp.Header.Revision, nil
}

// await waits until the record of a server heeds what is said of it, w among that.
func (c *conn) await(outer context.Context, s *server, w word, wait time.Duration) (*server, error) {
	ctx, cancel := context.WithTimeout(outer, wait)
	defer cancel()
	stands := "The word stands"
	if w.lifts {
		stands = "What was said of it is lifted all the same"
	}
	var why error
	for {
		asked := time.Now()
		now, err := c.heeding(ctx, s, w)
		if _, said := errors.AsType[unheeded](err); now != nil || said {
			return now, err
		}
		if ctx.Err() == nil || time.Since(asked) > time.Second { // or it was cut short by the wait
			why = err
		}
		select {
		case <-ctx.Done():
			if outer.Err() != nil {
				return nil, fmt.Errorf("told, and not waited for: %w", outer.Err())
			}
			switch {
			case errors.Is(why, errGone):
				return nil, unheeded{fmt.Errorf("%s has not heeded it in %v: it is not registered any more. %s", printable(s.key), wait, stands)}
			case why != nil:
				return nil, fmt.Errorf("told, and whether that is heeded is not known: %w", why)
			}
			return nil, unheeded{fmt.Errorf("%s has not heeded it in %v: it hangs, is cut off from etcd, is of a release that does not know of it, "+
				"its etcd user may not read %q, or --namespace is not its own. %s", printable(s.key), wait, c.namespace+records.IntentPrefix+s.key, stands)}
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// errGone says that a server has no record: it has left, or is between two leases.
var errGone = errors.New("there is no record")

// heeding returns the server if its record heeds what is said of it, nil if it does not yet.
func (c *conn) heeding(ctx context.Context, s *server, w word) (*server, error) {
	resp, err := c.get(ctx, s.key)
	switch {
	case err != nil:
		return nil, err
	case len(resp.Kvs) == 0:
		return nil, errGone
	}
	_, id, _ := records.Split(s.key)
	i, err := c.intent(ctx, s.service, id) // somebody else may have said more
	if err != nil {
		return nil, err
	}
	if i.bad != nil || !w.stands(i) {
		return nil, unheeded{fmt.Errorf("somebody else has said otherwise of %s meanwhile: see homing ls %s", printable(s.key), s.service)}
	}
	now := new(read(s.service, id, resp.Kvs[0], true))
	if now.bad != nil || now.record.Intent() != i.revision {
		return nil, nil
	}
	if i.revision > 0 {
		now.intent = i
	}
	return now, nil
}

// rewrite changes the record of other code, under the lease that it has.
func (c *conn) rewrite(ctx context.Context, s *server, w word) (now *server, err error) {
	return now, raced(func() error {
		resp, err := c.get(ctx, s.key)
		if err != nil {
			return err
		}
		if len(resp.Kvs) == 0 {
			return unheeded{fmt.Errorf("the record %q is gone", s.key)}
		}
		kv := resp.Kvs[0]
		if r, err := records.Decode(kv.Value, false); err == nil && r.Owned() { // which would put it back
			return unheeded{fmt.Errorf("the record %q is of a server that has started meanwhile: say it again", s.key)}
		}
		if kv.Value, err = changed(kv.Value, w.record); err != nil {
			return fmt.Errorf("changing %q: %w", s.key, err)
		}
		if _, err = c.swap(ctx, s.key, kv.ModRevision, clientv3.OpPut(s.key, string(kv.Value), clientv3.WithIgnoreLease())); err != nil {
			return err
		}
		now = new(read(s.service, s.id, kv, true))
		return nil
	})
}

// changed returns a record with other metadata. All else stays as it is.
func changed(value []byte, change func(map[string]json.RawMessage)) ([]byte, error) {
	r, err := records.Decode(value, false)
	if err != nil {
		return nil, err
	}
	var old struct{ Metadata json.RawMessage }
	var record map[string]json.RawMessage
	if err := cmp.Or(json.Unmarshal(value, &old), json.Unmarshal(value, &record)); err != nil {
		return nil, err
	}
	meta := make(map[string]json.RawMessage)
	if m := string(old.Metadata); strings.HasPrefix(m, "{") {
		if err := json.Unmarshal(old.Metadata, &meta); err != nil {
			return nil, err
		}
	} else if r.Meta.ID != "" { // a bare id
		meta["id"] = old.Metadata
	}
	change(meta)
	// Who reads it does not tell upper case from lower.
	maps.DeleteFunc(record, func(name string, _ json.RawMessage) bool {
		return strings.EqualFold(name, "Addr") || strings.EqualFold(name, "Metadata")
	})
	if record["Addr"], err = json.Marshal(r.Addr); err != nil {
		return nil, err
	}
	if record["Metadata"], err = json.Marshal(meta); err != nil {
		return nil, err
	}
	return json.Marshal(record)
}

// completable are ids that a shell takes as they are: bash expands what it is offered, and
// what is after a colon is a description.
var completable = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*$`)

// completeIDs offers the servers of the service that is named.
func completeIDs(ctx context.Context, c *cli.Command) {
	service := c.String("service")
	args := c.Args().Slice() // without the word that is being typed, unless it is a flag
	if len(args) == 1 && !strings.HasPrefix(args[0], "-") {
		return // there is an id
	}
	if len(args) > 0 && strings.HasPrefix(args[len(args)-1], "-") {
		cli.DefaultCompleteWithFlags(ctx, c)
		return
	}
	if service == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	etcd, err := connect(ctx, c)
	if err != nil {
		return // a shell has no place for it
	}
	defer etcd.Close()
	_, _ = etcd.each(ctx, service+"/", 0, func(kv *mvccpb.KeyValue) {
		if s, id, ok := records.Split(string(kv.Key)); ok && s == service && completable.MatchString(id) {
			fmt.Fprintln(c.Root().Writer, id)
		}
	}, nil)
}
