package endpointsmeta

import (
	"fmt"
	"math"
	"strconv"
)

// MaxIDLen is the longest ID, in bytes.
const MaxIDLen = 256

// Validate returns an error that names the first field that does not hold what
// [Meta] says it may hold, or nil.
func (m Meta) Validate() error {
	if len(m.ID) > MaxIDLen {
		return fmt.Errorf("endpointsmeta: id must be at most %d bytes, got %d: %q…", MaxIDLen, len(m.ID), m.ID[:32])
	}
	for i := range len(m.ID) {
		if c := m.ID[i]; c < 0x20 || c > 0x7e {
			return fmt.Errorf("endpointsmeta: id must be printable ASCII, got %q", m.ID)
		}
	}
	if m.ID != "" && (m.ID[0] == ' ' || m.ID[len(m.ID)-1] == ' ') {
		// HTTP strips them from header values, so two servers could become one.
		return fmt.Errorf("endpointsmeta: id must not begin or end with a space, got %q", m.ID)
	}
	if m.Incarnation < 0 {
		return fmt.Errorf("endpointsmeta: incarnation must not be negative, got %d", m.Incarnation)
	}
	return nil
}

// Decode reads v as the Metadata field of an [endpoints.Endpoint] holds it
// after it came out of etcd:
//
//   - nil: no metadata, the zero Meta;
//   - a string: an ID, as older registrations use;
//   - a map[string]any, the decoded JSON object of a Meta. Fields that it does
//     not know are ignored, so that later releases can add some;
//   - a Meta or *Meta that has not been through JSON yet.
//
// Anything else, or a field of the wrong type, is an error that names it.
//
// [endpoints.Endpoint]: https://pkg.go.dev/go.etcd.io/etcd/client/v3/naming/endpoints#Endpoint
func Decode(v any) (Meta, error) {
	var m Meta
	switch v := v.(type) {
	case nil:
		return Meta{}, nil
	case Meta:
		m = v
	case *Meta:
		if v == nil {
			return Meta{}, nil
		}
		m = *v
	case string:
		m.ID = v
	case map[string]any:
		var err error
		if m, err = decodeObject(v); err != nil {
			return Meta{}, err
		}
	default:
		return Meta{}, fmt.Errorf("endpointsmeta: metadata must be an object, a string or null, got %s", describe(v))
	}
	if err := m.Validate(); err != nil {
		return Meta{}, err
	}
	return m, nil
}

func decodeObject(o map[string]any) (m Meta, err error) {
	if m.ID, err = field[string](o, "id", "a string"); err != nil {
		return Meta{}, err
	}
	if m.Zone, err = field[string](o, "zone", "a string"); err != nil {
		return Meta{}, err
	}
	if m.Draining, err = field[bool](o, "draining", "true or false"); err != nil {
		return Meta{}, err
	}
	weight, err := integer(o, "weight", math.MaxUint32)
	if err != nil {
		return Meta{}, err
	}
	m.Weight = uint32(weight)
	if m.Incarnation, err = integer(o, "incarnation", 1<<53); err != nil {
		return Meta{}, err
	}
	labels, err := field[map[string]any](o, "labels", "an object")
	if err != nil || len(labels) == 0 {
		return m, err
	}
	m.Labels = make(map[string]string, len(labels))
	for k := range labels {
		if m.Labels[k], err = field[string](labels, k, "a string"); err != nil {
			return Meta{}, fmt.Errorf("endpointsmeta: labels: %w", err)
		}
	}
	return m, nil
}

// field returns o[name], the zero value where it is absent or null.
func field[T any](o map[string]any, name, want string) (T, error) {
	v := o[name]
	t, ok := v.(T)
	if v != nil && !ok {
		return t, fmt.Errorf("endpointsmeta: %s must be %s, got %s", name, want, describe(v))
	}
	return t, nil
}

// integer returns o[name], which JSON decodes to a float64, if it is a whole
// number in [0, limit].
func integer(o map[string]any, name string, limit int64) (int64, error) {
	f, err := field[float64](o, name, "a number")
	if err != nil {
		return 0, err
	}
	if f != math.Trunc(f) || f < 0 || f > float64(limit) {
		return 0, fmt.Errorf("endpointsmeta: %s must be a whole number from 0 to %d, got %s",
			name, limit, strconv.FormatFloat(f, 'g', -1, 64))
	}
	return int64(f), nil
}

// describe prints v short enough for an error that may be logged.
func describe(v any) string {
	s := fmt.Sprintf("%v", v)
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return fmt.Sprintf("%q (%T)", s, v)
}
