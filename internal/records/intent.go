package records

import (
	"encoding/json"
	"fmt"
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

// DecodeIntent reads an intent. Fields that it does not know are ignored.
func DecodeIntent(value []byte) (Intent, error) {
	var i *Intent
	if err := json.Unmarshal(value, &i); err != nil {
		return Intent{}, fmt.Errorf("registry: intent must be a JSON object of draining and weight: %w", err)
	}
	if i == nil {
		return Intent{}, fmt.Errorf("registry: intent must be a JSON object of draining and weight, got %s", value)
	}
	return *i, nil
}

// Empty reports whether nothing is wanted.
func (i Intent) Empty() bool { return !i.Draining && i.Weight == 0 }

// Apply returns what becomes of what the server says of itself. Each can only say that the
// server drains, so neither ends what the other began.
func (i Intent) Apply(m endpointsmeta.Meta) endpointsmeta.Meta {
	m.Draining = m.Draining || i.Draining
	if i.Weight > 0 {
		m.Weight = i.Weight
	}
	return m
}
