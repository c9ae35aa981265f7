package sim

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Print writes what was seen, as tables in Markdown.
func (r Result) Print(out io.Writer) {
	c := r.Config
	fmt.Fprintf(out, "%s servers in %d zones, %s clients, %s keys, each with a session.\n",
		thousands(c.Servers), zones, thousands(c.Clients), thousands(c.Keys))
	fmt.Fprintf(out, "Whole clients: %d. Each key was asked of one of them, each slot of all, and all of that\n"+
		"compared with plain rendezvous hashing. Traffic is one client's, times clients.\n\n", c.Sampled)

	t := table{out: out}
	t.head("event", "servers", "keys moved", "had to", "needless", "sessions moved", "had to", "needless", "astray")
	for _, row := range r.Rows {
		k, s := row.Keys, row.Sessions
		t.row(row.Event, thousands(row.Servers), thousands(k.Moved), thousands(k.Needed), thousands(k.Needless),
			thousands(s.Moved), thousands(s.Needed), thousands(s.Needless), thousands(row.Astray))
	}

	fmt.Fprintln(out)
	t.head("event", "keys, busiest/mean", "then", "sessions, then", "lists", "longest list, CPU", "CPU of a client, with shared tables")
	for _, row := range r.Rows {
		t.row(row.Event, fmt.Sprintf("%.2f", row.Before), fmt.Sprintf("%.2f", row.After), fmt.Sprintf("%.2f", row.SessionsAfter),
			thousands(row.Lists), milliseconds(row.Longest), milliseconds(row.CPU))
	}

	fmt.Fprintf(out, "\nA record in etcd: %d bytes.\n\n", r.Record)
	t.head("event", "events of a watch", "KB", "other reads, KB", fmt.Sprintf("all %s watches, MB", thousands(c.Clients)))
	for _, row := range r.Rows {
		t.row(row.Event, thousands(row.Events), kilobytes(row.WatchBytes), kilobytes(row.ListBytes+row.Looked),
			megabytes(float64(row.WatchBytes)*float64(c.Clients)))
	}

	fmt.Fprintln(out)
	most := r.Rows[0] // who starts anew tells of each server
	t.head("clients", "connections of etcd, and watches", "reads a second, at rest", "their KB a second", "MB of a rolling restart", "connections of servers, full mesh")
	for n := min(10, c.Clients); ; n = min(10*n, c.Clients) {
		t.row(thousands(n), thousands(n), fmt.Sprintf("%.1f", float64(r.Idle.looks*n)/600),
			kilobytes(r.Idle.lookBytes*n/600), megabytes(float64(most.WatchBytes)*float64(n)),
			thousands(n*c.Servers))
		if n == c.Clients {
			break
		}
	}
}

type table struct{ out io.Writer }

func (t table) head(cells ...string) {
	t.row(cells...)
	t.row(strings.Split(strings.Repeat("---|", len(cells)-1)+"---", "|")...)
}

func (t table) row(cells ...string) { fmt.Fprintf(t.out, "| %s |\n", strings.Join(cells, " | ")) }

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func kilobytes(n int) string { return fmt.Sprintf("%.1f", float64(n)/1e3) }
