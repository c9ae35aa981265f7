package operator

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"
)

// row is a server in JSON. Its names are for scripts, and stay.
type row struct {
	Service     string            `json:"service"`
	ID          string            `json:"id"`
	Address     string            `json:"address"`
	Weight      uint32            `json:"weight"`
	Zone        string            `json:"zone"`
	State       string            `json:"state"`
	Draining    bool              `json:"draining"`
	Incarnation int64             `json:"incarnation,omitempty"`
	Started     time.Time         `json:"started,omitzero"`
	AgeSeconds  *int64            `json:"ageSeconds,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Operator    *operatorRow      `json:"operator,omitempty"`
	Key         string            `json:"key"`
	Error       string            `json:"error,omitempty"`
}

// operatorRow is what the operator says.
type operatorRow struct {
	Draining bool      `json:"draining"`
	Weight   uint32    `json:"weight,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Heeded   bool      `json:"heeded"`
}

func (s *server) row() row {
	m := s.record.Meta
	r := row{Service: s.service, ID: s.id, Address: s.record.Addr, Zone: m.Zone, State: s.state(), Draining: m.Draining,
		Incarnation: m.Incarnation, Started: s.record.Started(), Labels: m.Labels, Key: s.key}
	switch {
	case s.gone:
	case s.bad != nil:
		r.Error = s.bad.Error()
	default:
		r.Weight = s.weight()
	}
	if age, ok := s.age(); ok {
		r.AgeSeconds = new(int64(age / time.Second))
	}
	if i := s.intent; i != nil {
		r.Operator = &operatorRow{i.Draining, i.Weight, i.Since, s.heeds()}
	}
	return r
}

// cells are the row of a table.
func (s *server) cells() []string {
	if s.bad != nil {
		return []string{s.service, s.id, "-", "-", "-", s.state(), "-"}
	}
	age := "-"
	if d, ok := s.age(); ok {
		age = short(d)
	}
	return []string{s.service, s.id, s.record.Addr, s.weightCell(), cmp.Or(s.record.Meta.Zone, "-"), s.state(), age}
}

func (s *server) weightCell() string {
	w := strconv.FormatUint(uint64(s.weight()), 10)
	if s.intent != nil && s.intent.Weight > 0 && s.heeds() {
		w += " (operator)"
	}
	return w
}

// short is a duration to look at, in its greatest unit.
func short(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/day)
}

func printTable(w io.Writer, header []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range append([][]string{header}, rows...) {
		for i := range r {
			r[i] = printable(r[i])
		}
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

// printable keeps what is in etcd from steering the terminal.
func printable(s string) string {
	if !utf8.ValidString(s) { // a lone byte may steer it, too
		return strconv.Quote(s)
	}
	for _, r := range s {
		if !strconv.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
