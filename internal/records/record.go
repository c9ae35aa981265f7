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
	Addr string
	Meta endpointsmeta.Meta
	more map[string]any // the metadata, if it is an object
}

// ErrNoAddr says that a record has no address.
var ErrNoAddr = errors.New("registry: record must have an Addr")

// Decode reads a record.
func Decode(value []byte) (Record, error) {
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
	return Record{Addr: ep.Addr, Meta: m, more: more}, nil
}

// Owned reports whether a registration owns the record, which puts it back when somebody
// else changes it.
func (r Record) Owned() bool { return r.Meta.Incarnation > 0 }

// Started returns when the registration began, the zero time if the record does not say.
func (r Record) Started() time.Time {
	s, _ := r.more["started"].(string)
	t, _ := time.Parse(time.RFC3339, s)
	return t
}

// Intent returns the revision of the intent that the record heeds, 0 if none.
func (r Record) Intent() int64 {
	n, _ := r.more["intent"].(float64)
	return int64(n)
}
