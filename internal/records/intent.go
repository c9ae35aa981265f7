package records

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/homing-grpc/homing/endpointsmeta"
)

// IntentPrefix is before all keys of intents. No service may be named so, and whoever reads
// the servers of a service never finds an intent among them.
const IntentPrefix = "/homing/operator/"

// Intent is what an operator wants of a server, over what the server says of itself.
type Intent struct {
	Draining bool   `json:"draining,omitempty"`
	Weight   uint32 `json:"weight,omitempty"` // 0: the server's own

	// Since is when it was said last, by the operator's clock. It is for people to read.
	Since time.Time `json:"since,omitzero"`

	more map[string]json.RawMessage // what a later release may have said: it is kept
}

// known are the fields of an Intent.
type known Intent

// MarshalJSON writes the fields that were read, and not known, too.
func (i Intent) MarshalJSON() ([]byte, error) {
	value, err := json.Marshal(known(i))
	if err != nil || len(i.more) == 0 {
		return value, err
	}
	all := maps.Clone(i.more)
	if err := json.Unmarshal(value, &all); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// IntentKey is the key of the intent for one server.
func IntentKey(service, id string) string { return IntentPrefix + service + "/" + id }

// Split returns the service and the id in a key of a record, or of an intent without its
// prefix. ok is false if there is no such thing.
func Split(key string) (service, id string, ok bool) {
	i := strings.LastIndexByte(key, '/')
	if i <= 0 || i == len(key)-1 {
		return "", "", false
	}
	return key[:i], key[i+1:], true
}

// DecodeIntent reads an intent. Fields that it does not know are kept, and say nothing.
func DecodeIntent(value []byte) (Intent, error) {
	var i *known
	if err := json.Unmarshal(value, &i); err != nil {
		return Intent{}, fmt.Errorf("registry: intent must be a JSON object of draining and weight: %w", err)
	}
	if i == nil {
		return Intent{}, fmt.Errorf("registry: intent must be a JSON object of draining and weight, got %s", value)
	}
	if err := json.Unmarshal(value, &i.more); err != nil {
		return Intent{}, fmt.Errorf("registry: intent must be a JSON object: %w", err)
	}
	maps.DeleteFunc(i.more, func(name string, _ json.RawMessage) bool {
		return slices.ContainsFunc([]string{"draining", "weight", "since"}, func(field string) bool {
			return strings.EqualFold(name, field) // encoding/json does not tell upper case from lower
		})
	})
	if len(i.more) == 0 {
		i.more = nil
	}
	return Intent(*i), nil
}

// Empty reports whether nothing is wanted, as far as is known.
func (i Intent) Empty() bool { return !i.Draining && i.Weight == 0 && len(i.more) == 0 }

// Unknown reports whether nothing is wanted but what a later release knows.
func (i Intent) Unknown() bool { return !i.Draining && i.Weight == 0 && len(i.more) > 0 }

// Apply returns what becomes of what the server says of itself. Each can only say that the
// server drains, so neither ends what the other began.
func (i Intent) Apply(m endpointsmeta.Meta) endpointsmeta.Meta {
	m.Draining = m.Draining || i.Draining
	if i.Weight > 0 {
		m.Weight = i.Weight
	}
	return m
}
