package registry

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta"
)

// Instance is one server of a service, as its record in etcd has it.
type Instance struct {
	ID   string             // Meta.ID, or Addr where the record names none
	Addr string             // where clients reach it
	Meta endpointsmeta.Meta // what it says of itself
	Key  string             // of the record in etcd
}

func (i Instance) endpoint() resolver.Endpoint {
	return endpointsmeta.Set(resolver.Endpoint{Addresses: []resolver.Address{{Addr: i.Addr}}}, i.Meta)
}

func (i *Instance) equal(o *Instance) bool {
	return i.Key == o.Key && i.Addr == o.Addr && i.Meta.Equal(o.Meta)
}

// decodeRecord reads a record in the JSON of the official endpoints package.
func decodeRecord(key string, value []byte) (Instance, error) {
	var ep *endpoints.Endpoint // its fields are those of the record
	if err := json.Unmarshal(value, &ep); err != nil {
		return Instance{}, fmt.Errorf("registry: record must be a JSON object: %w", err)
	}
	if ep == nil || ep.Addr == "" {
		return Instance{}, errors.New("registry: record must have an Addr")
	}
	m, err := endpointsmeta.Decode(ep.Metadata)
	if err != nil {
		return Instance{}, err
	}
	return Instance{ID: cmp.Or(m.ID, ep.Addr), Addr: ep.Addr, Meta: m, Key: key}, nil
}

// sortInstances puts instances in the order in which every client sees them.
func sortInstances(s []Instance) {
	slices.SortFunc(s, func(a, b Instance) int { return a.compare(&b) })
}

func (i *Instance) compare(o *Instance) int {
	if c := strings.Compare(i.ID, o.ID); c != 0 {
		return c
	}
	return strings.Compare(i.Key, o.Key)
}
