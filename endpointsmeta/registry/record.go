package registry

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/resolver"

	"github.com/homing-grpc/homing/endpointsmeta"
	"github.com/homing-grpc/homing/internal/records"
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

// decodeRecord reads a record, as records.Decode does.
func decodeRecord(key string, value []byte, plain bool) (Instance, error) {
	r, err := records.Decode(value, plain)
	if errors.Is(err, records.ErrPlain) {
		err = fmt.Errorf("%w (WithPlainAddresses reads it)", err)
	}
	if err != nil {
		return Instance{}, err
	}
	return Instance{ID: cmp.Or(r.Meta.ID, r.Addr), Addr: r.Addr, Meta: r.Meta, Key: key}, nil
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
