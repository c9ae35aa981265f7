package operator

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/internal/records"
)

// server is a record, and what the operator says of its server.
type server struct {
	service, id, key string
	record           records.Record
	bad              error // the record makes no sense: record is empty, and id from the key
	revision         int64
	lease            clientv3.LeaseID
	intent           *intent // nil if there is none
	listed           bool    // it comes without what it heeds: that counts as heeded
	gone             bool    // there is no record: all but its name is empty
}

// intent is an operator's word as etcd has it.
type intent struct {
	records.Intent
	service, id string
	bad         error
	revision    int64
}

// fleet is what etcd has of one service, or of all.
type fleet struct {
	servers []server
	intents map[string]intent // by the key of the record that they are about
}

// fleetOf reads one service. Who may not read the intents gets the servers without them,
// and a word to notes.
func (c *conn) fleetOf(ctx context.Context, service string, notes io.Writer) (*fleet, error) {
	resp, err := c.get(ctx, service+"/", clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	f := &fleet{}
	for _, kv := range resp.Kvs {
		if s, id, ok := records.Split(string(kv.Key)); ok && s == service {
			f.add(service, id, kv)
		}
	}
	return f, c.intents(ctx, f, service, notes)
}

// pageKeys is how many keys are read at once of an etcd that may hold much else.
const pageKeys = 500

// fleetOfAll reads all services: the prefixes under which there is a record of a server.
func (c *conn) fleetOfAll(ctx context.Context, notes io.Writer) (*fleet, error) {
	f := &fleet{}
	is := make(map[string]bool) // a service
	opts := []clientv3.OpOption{clientv3.WithFromKey(), clientv3.WithLimit(pageKeys)}
	for from := "\x00"; ; {
		resp, err := c.get(ctx, from, opts...)
		if errors.Is(err, rpctypes.ErrPermissionDenied) {
			return nil, fmt.Errorf("name a service: the etcd user %q may not look for all: %w", shown(c.Username), rpctypes.ErrPermissionDenied)
		}
		if err != nil {
			return nil, err
		}
		for _, kv := range resp.Kvs {
			service, id, ok := records.Split(string(kv.Key))
			if !ok || checkService(service, false) != nil {
				continue // no service has such a name
			}
			if looksLikeRecord(kv.Value) {
				is[service] = true
			} else {
				kv.Value = kv.Value[:min(len(kv.Value), 64)] // bad, whatever it is
			}
			f.add(service, id, kv)
		}
		if !resp.More {
			break
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		if len(opts) == 2 {
			opts = append(opts, clientv3.WithRev(resp.Header.Revision)) // all pages are of one moment
		}
	}
	f.servers = slices.DeleteFunc(f.servers, func(s server) bool { return !is[s.service] })
	return f, c.intents(ctx, f, "", notes)
}

// looksLikeRecord reports whether a value is meant to be the record of a server.
func looksLikeRecord(value []byte) bool {
	if value = bytes.TrimSpace(value); len(value) == 0 || value[0] != '{' {
		return false
	}
	var object map[string]json.RawMessage
	if json.Unmarshal(value, &object) != nil {
		return false
	}
	_, ok := object["Addr"]
	return ok
}

func (f *fleet) add(service, id string, kv *mvccpb.KeyValue) {
	s := server{service: service, id: id, key: string(kv.Key), revision: kv.ModRevision, lease: clientv3.LeaseID(kv.Lease)}
	if s.record, s.bad = records.Decode(kv.Value); s.bad == nil {
		s.id = cmp.Or(s.record.Meta.ID, s.record.Addr)
	}
	if s.bad == nil && !utf8.ValidString(s.key) { // clients skip it
		s.record, s.bad = records.Record{}, errors.New("registry: key must be UTF-8")
	}
	f.servers = append(f.servers, s)
}

// intents reads what operators say of a service, or of all if it is "".
func (c *conn) intents(ctx context.Context, f *fleet, service string, notes io.Writer) error {
	slices.SortFunc(f.servers, func(a, b server) int {
		return cmp.Or(cmp.Compare(a.service, b.service), cmp.Compare(a.id, b.id), cmp.Compare(a.key, b.key))
	})
	prefix := records.IntentPrefix
	if service != "" {
		prefix += service + "/"
	}
	resp, err := c.get(ctx, prefix, clientv3.WithPrefix())
	if errors.Is(err, rpctypes.ErrPermissionDenied) {
		fmt.Fprintf(notes, "homing: the etcd user %q may not read %s: what operators say is not shown\n", shown(c.Username), prefix)
		return nil
	}
	if err != nil {
		return err
	}
	f.intents = make(map[string]intent, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		key := strings.TrimPrefix(string(kv.Key), records.IntentPrefix)
		s, id, ok := records.Split(key)
		if !ok || service != "" && s != service {
			continue
		}
		i := intent{service: s, id: id, revision: kv.ModRevision}
		i.Intent, i.bad = records.DecodeIntent(kv.Value)
		f.intents[key] = i
	}
	for n := range f.servers {
		if i, ok := f.intents[f.servers[n].key]; ok {
			f.servers[n].intent = &i
		}
	}
	return nil
}

// heeds reports whether the record is as the operator wants it.
func (s *server) heeds() bool {
	return s.intent != nil && (s.listed || s.record.Intent() == s.intent.revision)
}

// state is in what the server is, as far as etcd knows.
func (s *server) state() string {
	wants := s.intent != nil && s.intent.Draining
	switch {
	case s.gone:
		return "not registered"
	case s.bad != nil:
		return "bad record"
	case s.record.Meta.Draining && wants && s.heeds():
		return "draining (operator)"
	case s.record.Meta.Draining:
		return "draining"
	case s.intent != nil && !s.heeds():
		return "registered (operator not heeded)"
	}
	return "registered"
}

func (s *server) weight() uint32 { return max(s.record.Meta.Weight, 1) }

// age is how long ago the server registered, by its clock and ours; ok is false if its
// record does not say.
func (s *server) age() (d time.Duration, ok bool) {
	started := s.record.Started()
	return max(time.Since(started), 0), !started.IsZero()
}

func (s *server) endpoint() resolver.Endpoint {
	return endpointsmeta.Set(resolver.Endpoint{Addresses: []resolver.Address{{Addr: s.record.Addr}}}, s.record.Meta)
}
