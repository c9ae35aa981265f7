package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// statistics are the medians of raw as benchstat writes them, which module tools pins: a table
// for each benchmark and unit, with a column for each count of servers.
func statistics(ctx context.Context, root string, raw []byte) ([]byte, error) {
	f, err := os.CreateTemp("", "bench")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(raw)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", "benchstat", "-format", "csv", "-table", ".name", "-col", "/n",
		"-row", "/transport,/kind,/call,/list,/change,/policy,/way,/setup", f.Name())
	cmd.Dir = filepath.Join(root, "tools")
	cmd.Env = append(os.Environ(), "GOWORK=off")
	var warnings bytes.Buffer // about means of what cannot be compared, and about few repetitions
	cmd.Stderr = &warnings
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("benchstat: %w\n%s", err, &warnings)
	}
	return out, nil
}

// table is one of a benchmark. Its columns are counts of servers, or units where it has none.
type table struct {
	title         string
	columns, rows []string
	cells         map[[2]string]string // by row and column
}

// tables reads benchstat's CSV. What it says of each column compared with the first is left
// out, for rivals are in rows.
func tables(statistics io.Reader) (ts []*table, err error) {
	r := csv.NewReader(statistics)
	r.FieldsPerRecord = -1
	records, err := r.ReadAll()
	if err != nil {
		return nil, err
	}
	var name string
	var head []string // counts of servers, each over its columns
	var units []string
	var t *table
	for _, rec := range records {
		switch {
		case len(rec) == 1:
			name, head, t = strings.TrimPrefix(rec[0], ".name: "), nil, nil
		case rec[0] == "" && (head == nil || units != nil):
			head, units = rec, nil
		case rec[0] == "":
			units = rec
			unit := units[1]
			switch {
			case head[1] != "":
				t = &table{title: name + ", " + strings.Replace(unit, "sec/op", "time", 1), cells: make(map[[2]string]string)}
				ts = append(ts, t)
			case t == nil:
				t = &table{title: name, cells: make(map[[2]string]string)}
				ts = append(ts, t)
			}
		case rec[0] != "geomean" && t != nil:
			for i, v := range rec {
				if i == 0 || v == "" || i+1 >= len(units) || units[i+1] != "CI" {
					continue
				}
				column := head[i]
				if column == "" {
					column = units[i]
				}
				t.put(rec[0], column, cell(v, rec[i+1], units[i]))
			}
		}
	}
	return slices.DeleteFunc(ts, (*table).dull), nil
}

func (t *table) put(row, column, cell string) {
	if !slices.Contains(t.rows, row) {
		t.rows = append(t.rows, row)
	}
	if !slices.Contains(t.columns, column) {
		t.columns = append(t.columns, column)
	}
	t.cells[[2]string{row, column}] = cell
}

// dull reports whether another table says it, or none need: bytes where allocations are
// counted, allocations of what is measured on one core too.
func (t *table) dull() bool {
	name, unit, _ := strings.Cut(t.title, ", ")
	pick := strings.HasPrefix(name, "Pick") || strings.HasPrefix(name, "Lookup")
	return len(t.rows) == 0 || pick && unit == "B/op" || strings.HasSuffix(name, "Parallel") && unit == "allocs/op"
}

// cell is a median, and how far the others are from it, where benchstat knows.
func cell(value, spread, unit string) string {
	v, err := strconv.ParseFloat(value, 64)
	if err != nil {
		return value
	}
	s := amount(v, unit)
	if _, err := strconv.ParseFloat(strings.TrimSuffix(spread, "%"), 64); err == nil && spread != "0%" {
		s += " ±" + spread
	}
	return s
}

// amount is v in a readable size of its unit.
func amount(v float64, unit string) string {
	if v == 0 {
		return "0"
	}
	switch {
	case unit == "sec/op":
		return scaled(v, 1e-9, []string{"ns", "µs", "ms", "s"})
	case strings.HasPrefix(unit, "p50-ns:"):
		return scaled(v, 1, []string{"ns", "µs", "ms", "s"})
	case unit == "B" || strings.HasPrefix(unit, "B/"):
		return scaled(v, 1, []string{"B", "kB", "MB", "GB"})
	}
	return short(v)
}

func scaled(v, least float64, names []string) string {
	i := 0
	for v /= least; v >= 999.5 && i+1 < len(names); i++ {
		v /= 1000
	}
	return short(v) + " " + names[i]
}

// short is v with three digits, or all before the point.
func short(v float64) string {
	if math.Abs(v) >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

func (t *table) markdown() string {
	var w strings.Builder
	// Where setups are columns, the one to compare with is the first.
	if i := slices.Index(t.columns, "p50-ns:plain"); i > 0 {
		t.columns = slices.Insert(slices.Delete(t.columns, i, i+1), 0, "p50-ns:plain")
	}
	first := "N ="
	if _, err := strconv.Atoi(t.columns[0]); err != nil {
		first = ""
	}
	fmt.Fprintf(&w, "### %s\n\n| %s | %s |\n|---|%s\n", t.title, first, strings.ReplaceAll(strings.Join(t.columns, " | "), "p50-ns:", "p50, "), strings.Repeat("---:|", len(t.columns)))
	for _, row := range t.rows {
		fmt.Fprintf(&w, "| %s |", row)
		for _, c := range t.columns {
			fmt.Fprintf(&w, " %s |", t.cells[[2]string{row, c}])
		}
		w.WriteString("\n")
	}
	w.WriteString("\n")
	return w.String()
}
