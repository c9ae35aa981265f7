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
	shadow           bool    // clients pass it over: it names no id, and another one of its address does
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
	service string // "" for all
	servers []server
	intents map[string]intent // by the key of the record that they are about; nil if they may not be read
}

// fleetOf reads one service, or all if it is "". Who may not read the intents gets the
// servers without them, and a word to notes.
func (c *conn) fleetOf(ctx context.Context, service string, notes io.Writer) (f *fleet, err error) {
	for range 3 {
		if service == "" {
			f, err = c.fleetOfAll(ctx, notes)
		} else {
			f, err = c.fleetOfOne(ctx, service, notes)
		}
		if !errors.Is(err, rpctypes.ErrCompacted) { // between two pages of one revision
			break
		}
	}
	return f, err
}

func (c *conn) fleetOfOne(ctx context.Context, service string, notes io.Writer) (*fleet, error) {
	f := &fleet{service: service}
	revision, err := c.each(ctx, service+"/", 0, func(kv *mvccpb.KeyValue) {
		if s, id, ok := records.Split(string(kv.Key)); ok && s == service {
			f.servers = append(f.servers, read(service, id, kv, c.plain))
		}
	}, nil)
	if err != nil {
		return nil, err
	}
	return f, c.intents(ctx, f, service, revision, notes)
}

// fleetOfAll reads all services: the prefixes under which there is a record of a server.
func (c *conn) fleetOfAll(ctx context.Context, notes io.Writer) (*fleet, error) {
	f := &fleet{}
	is := make(map[string]bool) // a service
	revision, err := c.each(ctx, "", 0, func(kv *mvccpb.KeyValue) {
		service, id, ok := records.Split(string(kv.Key))
		if !ok || checkService(service, false) != nil {
			return // no service has such a name
		}
		record := looksLikeRecord(kv.Value)
		if !record {
			kv.Value = kv.Value[:min(len(kv.Value), endpointsmeta.MaxIDLen+1)] // an address, or bad whatever it is
		}
		s := read(service, id, kv, c.plain)
		if record || s.record.Plain {
			is[service] = true
		}
		f.servers = append(f.servers, s)
	}, func(last string) {
		// An etcd may hold much else, so what can no more turn out to be a service is let go.
		f.servers = slices.DeleteFunc(f.servers, func(s server) bool {
			return !is[s.service] && !strings.HasPrefix(last, s.service+"/")
		})
	})
	if errors.Is(err, rpctypes.ErrPermissionDenied) {
		return nil, fmt.Errorf("name a service: the etcd user %q may not look for all: %w", shown(c.Username), rpctypes.ErrPermissionDenied)
	}
	if err != nil {
		return nil, err
	}
	f.servers = slices.DeleteFunc(f.servers, func(s server) bool { return !is[s.service] })
	return f, c.intents(ctx, f, "", revision, notes)
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
	if _, ok := object["Addr"]; ok {
		return true
	}
	// Clients take "addr" for it, too, of which there are others in an etcd.
	r, err := records.Decode(value, false)
	if err != nil {
		return false
	}
	addr, err := records.Decode([]byte(r.Addr), true)
	return err == nil && addr.Plain
}

// read is the server that a key is about.
func read(service, id string, kv *mvccpb.KeyValue, plain bool) server {
	s := server{service: service, id: id, key: string(kv.Key), revision: kv.ModRevision, lease: clientv3.LeaseID(kv.Lease)}
	if s.record, s.bad = records.Decode(kv.Value, plain); s.bad == nil {
		s.id = cmp.Or(s.record.Meta.ID, s.record.Addr)
	} else if errors.Is(s.bad, records.ErrPlain) {
		s.bad = fmt.Errorf("%w (--plain-addresses reads it)", s.bad)
	}
	if s.bad == nil && !utf8.ValidString(s.key) { // clients skip it
		s.record, s.bad = records.Record{}, errors.New("registry: key must be UTF-8")
	}
	return s
}

// intents reads what operators say of a service, or of all if it is "", at the revision
// at which the servers were read: or else one would seem not to heed what came between.
func (c *conn) intents(ctx context.Context, f *fleet, service string, revision int64, notes io.Writer) error {
	f.sort()
	prefix := records.IntentPrefix
	if service != "" {
		prefix += service + "/"
	}
	intents := make(map[string]intent)
	_, err := c.each(ctx, prefix, revision, func(kv *mvccpb.KeyValue) {
		key := strings.TrimPrefix(string(kv.Key), records.IntentPrefix)
		s, id, ok := records.Split(key)
		if ok && (service == "" || s == service) {
			intents[key] = readIntent(s, id, kv)
		}
	}, nil)
	if errors.Is(err, rpctypes.ErrPermissionDenied) {
		fmt.Fprintf(notes, "homing: the etcd user %q may not read %s: what operators say is not shown\n", shown(c.Username), c.namespace+prefix)
		return nil
	}
	if err != nil {
		return err
	}
	f.intents = intents
	for n := range f.servers {
		if i, ok := f.intents[f.servers[n].key]; ok {
			f.servers[n].intent = &i
		}
	}
	return nil
}

func readIntent(service, id string, kv *mvccpb.KeyValue) intent {
	i := intent{service: service, id: id, revision: kv.ModRevision}
	i.Intent, i.bad = records.DecodeIntent(kv.Value)
	return i
}

// sort puts the servers in order, and marks those that clients pass over.
func (f *fleet) sort() {
	slices.SortFunc(f.servers, func(a, b server) int {
		return cmp.Or(cmp.Compare(a.service, b.service), cmp.Compare(a.id, b.id), cmp.Compare(a.key, b.key))
	})
	for from := 0; from < len(f.servers); {
		var usable []*server
		service := f.servers[from].service
		for ; from < len(f.servers) && f.servers[from].service == service; from++ {
			if s := &f.servers[from]; s.bad == nil {
				s.shadow = true
				usable = append(usable, s)
			}
		}
		for _, s := range records.WithoutShadows(usable, func(s **server) (id, addr string) {
			return (*s).record.Meta.ID, (*s).record.Addr
		}) {
			s.shadow = false
		}
	}
}

// heeds reports whether the record is as the operator wants it.
func (s *server) heeds() bool {
	return s.intent != nil && s.record.Intent() == s.intent.revision
}

// state is in what the server is, as far as etcd knows.
func (s *server) state() string {
	wants := s.intent != nil && s.intent.Draining
	switch {
	case s.gone:
		return "not registered"
	case s.bad != nil:
		return "bad record"
	case s.shadow:
		return "passed over"
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
