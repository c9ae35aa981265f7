// Package records is what homing keeps in etcd: the records of servers, in the JSON of
// etcd's official endpoints package, and what operators want of servers.
package records

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/client/v3/naming/endpoints"

	"github.com/homing-grpc/homing/endpointsmeta"
)

// Metadata is what a registration writes as the metadata of its record. What it has more
// than Meta is for operators.
type Metadata struct {
	endpointsmeta.Meta

	// Started is when the registration began, by the server's clock.
	Started time.Time `json:"started,omitzero"`

	// Intent is the revision of the intent that is heeded here, 0 if there is none.
	Intent int64 `json:"intent,omitempty"`
}

// Record is one server's record.
type Record struct {
	Addr    string
	Meta    endpointsmeta.Meta
	Plain   bool // it is nothing but an address
	started time.Time
	intent  int64
}

// ErrNoAddr says that a record has no address.
var ErrNoAddr = errors.New("registry: record must have an Addr")

// ErrPlain says that a record is nothing but an address, where that is not wanted.
var ErrPlain = errors.New("registry: record must be a JSON object, got a plain address")

// Decode reads a record in the JSON of the official endpoints package, or, if plain ones
// are wanted, a bare "host:port".
func Decode(value []byte, plain bool) (Record, error) {
	if isPlainAddress(value) {
		if !plain {
			return Record{}, ErrPlain
		}
		return Record{Addr: string(value), Plain: true}, nil
	}
	var ep *endpoints.Endpoint // its fields are those of the record
	if err := json.Unmarshal(value, &ep); err != nil {
		return Record{}, fmt.Errorf("registry: record must be a JSON object: %w", err)
	}
	if ep == nil || ep.Addr == "" {
		return Record{}, ErrNoAddr
	}
	m, err := endpointsmeta.Decode(ep.Metadata)
	if err != nil {
		return Record{}, err
	}
	more, _ := ep.Metadata.(map[string]any)
	started, _ := more["started"].(string)
	intent, _ := more["intent"].(float64)
	r := Record{Addr: ep.Addr, Meta: m, intent: int64(intent)}
	r.started, _ = time.Parse(time.RFC3339, started)
	return r, nil
}

// Owned reports whether a registration owns the record, which puts it back when somebody
// else changes it.
func (r Record) Owned() bool { return r.Meta.Incarnation > 0 }

// Started returns when the registration began, the zero time if the record does not say.
func (r Record) Started() time.Time { return r.started }

// Intent returns the revision of the intent that the record heeds, 0 if none.
func (r Record) Intent() int64 { return r.intent }

// WithoutShadows returns list, which it does not change, without each record that names no
// id if another one of the same address does: of a server that was upgraded where it is,
// or that is registered in the old way, too. It is so even if the other one drains, or has
// no lease. Of several that name none the first stays.
func WithoutShadows[T any](list []T, of func(*T) (id, addr string)) []T {
	unnamed := false
	for n := range list {
		if id, _ := of(&list[n]); id == "" {
			unnamed = true
			break
		}
	}
	if !unnamed {
		return list
	}
	known := make(map[string]bool, len(list))
	for n := range list {
		if id, addr := of(&list[n]); id != "" {
			known[addr] = true
		}
	}
	kept := make([]T, 0, len(list))
	for n := range list {
		id, addr := of(&list[n])
		if id == "" {
			if known[addr] {
				continue
			}
			known[addr] = true
		}
		kept = append(kept, list[n])
	}
	return kept
}
