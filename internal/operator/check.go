package operator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v3"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/homing-grpc/homing/internal/records"
)

const (
	// heedSoon is how long a server may take to heed its operator.
	heedSoon = time.Minute
	// staleAfter is when the word on a server that is not there has been forgotten.
	staleAfter = time.Hour
	// leasesAtOnce is how many leases are asked for at once.
	leasesAtOnce = 16
)

// finding is something wrong, in JSON.
type finding struct {
	Service string `json:"service"`
	ID      string `json:"id"`
	Key     string `json:"key"`
	Problem string `json:"problem"`
	Detail  string `json:"detail"`
}

// checked is what check has to say, in JSON.
type checked struct {
	Services int       `json:"services"`
	Servers  int       `json:"servers"`
	Findings []finding `json:"findings"`
}

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "find what is wrong with the records of a service, or of all",
		ArgsUsage: "[SERVICE]",
		Description: `It exits with 1 if it finds any of these:

   duplicate-id       two records of one id: clients use one of them
   duplicate-address  two ids on one address: clients use one of them
   bad-record         no JSON of a server, or an id that cannot be one: clients skip it
   empty-address      clients skip it
   no-lease           it stays when its server dies
   lease-ending       less than a third of its time is left: its server may be dead
   bad-intent         what the operator says cannot be read
   stale-intent       the operator says something of a server that is not there, and has
                      for an hour; one that starts under that id would heed it
   unheeded-intent    a server has not heeded its operator for a minute

Examples:

   homing check
   homing check game
   homing check -o json | jq -r '.findings[] | .problem'`,
		Flags: []cli.Flag{plainFlag()},
		Action: func(ctx context.Context, c *cli.Command) error {
			etcd, f, err := askedFor(ctx, c)
			if err != nil {
				return err
			}
			defer etcd.Close()
			result := checked{Servers: len(f.servers), Findings: f.findings(time.Now())}
			leases, err := etcd.leases(ctx, f)
			if err != nil {
				return err
			}
			result.Findings = append(result.Findings, leases...)
			services := make(map[string]bool)
			for _, s := range f.servers {
				services[s.service] = true
			}
			result.Services = len(services)
			return result.print(c)
		},
	}
}

func (r *checked) print(c *cli.Command) error {
	slices.SortStableFunc(r.Findings, func(a, b finding) int { return strings.Compare(a.Key, b.Key) })
	if c.String("output") == "json" {
		if r.Findings == nil {
			r.Findings = []finding{}
		}
		if err := printJSON(c.Root().Writer, r); err != nil {
			return err
		}
	} else {
		var rows [][]string
		for _, f := range r.Findings {
			rows = append(rows, []string{f.Service, f.ID, f.Problem, f.Detail})
		}
		if len(rows) > 0 {
			if err := printTable(c.Root().Writer, []string{"SERVICE", "ID", "PROBLEM", "DETAIL"}, rows); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(c.Root().Writer, "services: %d, servers: %d, findings: %d\n", r.Services, r.Servers, len(r.Findings)); err != nil {
			return err
		}
	}
	if len(r.Findings) > 0 {
		return errFound
	}
	return nil
}

// findings are those that the records show by themselves.
func (f *fleet) findings(now time.Time) (found []finding) {
	type in struct{ service, what string }
	byID, byAddress := make(map[in]*server), make(map[in]*server)
	for n := range f.servers {
		s := &f.servers[n]
		add := func(problem, format string, args ...any) {
			found = append(found, finding{s.service, s.id, s.key, problem, fmt.Sprintf(format, args...)})
		}
		if s.lease == 0 {
			add("no-lease", "the record %q has no lease", s.key)
		}
		if s.bad != nil {
			problem := "bad-record"
			if errors.Is(s.bad, records.ErrNoAddr) {
				problem = "empty-address"
			}
			add(problem, "the record %q: %s", s.key, strings.TrimPrefix(s.bad.Error(), "registry: "))
			continue
		}
		if s.shadow {
			continue // there may be one while servers change over from other code
		}
		if other, ok := byID[in{s.service, s.id}]; ok {
			add("duplicate-id", "the records %q at %s and %q at %s", other.key, other.record.Addr, s.key, s.record.Addr)
		} else if other, ok := byAddress[in{s.service, s.record.Addr}]; ok {
			add("duplicate-address", "%s is %q, too", s.record.Addr, other.id)
		}
		byID[in{s.service, s.id}], byAddress[in{s.service, s.record.Addr}] = s, s
		if i := s.intent; i != nil && i.bad == nil && !s.heeds() && now.Sub(i.Since) > heedSoon {
			add("unheeded-intent", "%s is not heeded%s", i.what(), i.since(now))
		}
	}
	keys := make(map[string]bool, len(f.servers))
	for _, s := range f.servers {
		keys[s.key] = true
	}
	for _, key := range slices.Sorted(maps.Keys(f.intents)) {
		i := f.intents[key]
		add := func(problem, format string, args ...any) {
			found = append(found, finding{i.service, i.id, records.IntentPrefix + key, problem, fmt.Sprintf(format, args...)})
		}
		switch {
		case i.bad != nil:
			add("bad-intent", "%s", strings.TrimPrefix(i.bad.Error(), "registry: "))
		case !keys[key] && now.Sub(i.Since) > staleAfter:
			add("stale-intent", "%s is said%s of a server that is not there", i.what(), i.since(now))
		}
	}
	return found
}

// what is said.
func (i *intent) what() string {
	switch {
	case i.Unknown():
		return "what this release does not know"
	case i.Draining && i.Weight > 0:
		return fmt.Sprintf("drain and weight %d", i.Weight)
	case i.Weight > 0:
		return fmt.Sprintf("weight %d", i.Weight)
	}
	return "drain"
}

func (i *intent) since(now time.Time) string {
	if i.Since.IsZero() {
		return ""
	}
	return " since " + short(now.Sub(i.Since))
}

// leases finds those that are about to end.
func (c *conn) leases(ctx context.Context, f *fleet) ([]finding, error) {
	byLease := make(map[clientv3.LeaseID][]*server)
	for n := range f.servers {
		if s := &f.servers[n]; s.lease != 0 {
			byLease[s.lease] = append(byLease[s.lease], s)
		}
	}
	var mu sync.Mutex
	var found []finding
	var errs []error
	var asking sync.WaitGroup
	slots := make(chan struct{}, leasesAtOnce)
	outer := ctx
	ctx, giveUp := context.WithCancel(outer) // an etcd that has gone away is not asked for each
	defer giveUp()
	for lease, servers := range byLease {
		if slots <- struct{}{}; ctx.Err() != nil {
			break
		}
		asking.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, c.timeout)
			defer cancel()
			resp, err := c.TimeToLive(ctx, lease)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, c.explain(err, "asking for a lease"))
				giveUp()
				return
			}
			// Etcd rounds down what is left. A server renews three times in the TTL.
			if resp.TTL < 0 || (resp.TTL+1)*3 <= resp.GrantedTTL {
				for _, s := range servers {
					found = append(found, finding{s.service, s.id, s.key, "lease-ending",
						fmt.Sprintf("%ds of %ds are left", max(resp.TTL, 0), resp.GrantedTTL)})
				}
			}
		})
	}
	asking.Wait()
	if len(errs) > 0 {
		return nil, errs[0]
	}
	return found, outer.Err()
}
