// Command mesh measures what the connections of one client cost, of all servers or of
// some: with "connect": "LAZY", with a "subsetSize", and with both. First of the policy
// alone, on connections that are not there; then of channels over the loopback, to a
// server in a process of its own that answers at as many addresses as there are servers.
//
//	go run ./bench/cmd/mesh [-servers 1000,10000] [-sockets 1000] [-fleet 1000] [-keys 1000]
//
// The addresses are 127.x.y.z, which all lead to this machine on Linux; elsewhere use
// -sockets 0.
package main

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/homing-grpc/homing/stickybalancer"
)

// setup is a config and the calls that are made under it.
type setup struct {
	name    string
	config  stickybalancer.Config
	keys    bool // calls by key
	keyless bool // calls without affinity
}

const subset = 20

var setups = []setup{
	{"EAGER", stickybalancer.Config{}, true, true},
	{"EAGER, subsetSize 20", stickybalancer.Config{SubsetSize: subset}, true, true},
	{"LAZY, keys", stickybalancer.Config{Connect: stickybalancer.ConnectLazy}, true, false},
	{"LAZY, keyless", stickybalancer.Config{Connect: stickybalancer.ConnectLazy}, false, true},
	{"LAZY, subsetSize 20, keyless", stickybalancer.Config{Connect: stickybalancer.ConnectLazy, SubsetSize: subset}, false, true},
	{"LAZY, subsetSize 20, keys", stickybalancer.Config{Connect: stickybalancer.ConnectLazy, SubsetSize: subset}, true, true},
}

const most = 1_000_000 // of servers and clients

// flags are what is asked for.
type flags struct {
	servers              string
	sockets, fleet, keys int
}

func main() {
	var f flags
	flag.StringVar(&f.servers, "servers", "1000,10000", "how many servers there are, for the policy alone")
	flag.IntVar(&f.sockets, "sockets", 1000, "how many servers, for channels; 0: none")
	flag.IntVar(&f.keys, "keys", 1000, "how many keys calls are made by")
	flag.IntVar(&f.fleet, "fleet", 1000, "how many clients of as many servers, for subsets; 0: none")
	serves := flag.Bool("serve", false, "be the server: for this command's own use")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "mesh measures what the connections of one client cost, of all servers or of some.\n\n"+
			"usage: mesh [flags]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *serves {
		serve(os.Stdin, os.Stdout)
		return
	}
	sizes, err := f.check(flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "mesh:", err)
		os.Exit(2)
	}
	// Bubbles of fake time are for tests only, so this is one.
	testing.Main(func(string, string) (bool, error) { return true, nil },
		[]testing.InternalTest{{Name: "mesh", F: func(t *testing.T) {
			if err := run(t, sizes, f.sockets, f.fleet, f.keys); err != nil {
				fmt.Fprintln(os.Stderr, "mesh:", err)
				os.Exit(1)
			}
			os.Exit(0)
		}}}, nil, nil)
}

// check returns the numbers of servers, or which flag is wrong.
func (f flags) check(args []string) (sizes []int, err error) {
	if len(args) > 0 {
		return nil, fmt.Errorf("there are flags only, got %q", args[0])
	}
	for size := range strings.SplitSeq(f.servers, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(size))
		if err != nil || n < 1 || n > most {
			return nil, fmt.Errorf("-servers must be numbers of 1 to 1,000,000, got %q", size)
		}
		sizes = append(sizes, n)
	}
	switch {
	case f.keys < 1:
		return nil, fmt.Errorf("-keys must be 1 or more, got %d", f.keys)
	case f.sockets < 0 || f.sockets > most:
		return nil, fmt.Errorf("-sockets must be 0 to 1,000,000, got %d", f.sockets)
	case f.fleet < 0 || f.fleet > most:
		return nil, fmt.Errorf("-fleet must be 0 to 1,000,000, got %d", f.fleet)
	}
	return sizes, nil
}

func run(t *testing.T, sizes []int, sockets, fleet, keys int) error {
	for _, n := range sizes {
		fmt.Printf("The policy alone, %d servers, %d keys:\n\n", n, keys)
		fmt.Println("| config, calls | connections | memory, MB | goroutines |\n| --- | --- | --- | --- |")
		for _, s := range setups {
			var conns int
			var u usage
			var err error
			synctest.Test(t, func(*testing.T) { conns, u, err = s.alone(n, keys) })
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			fmt.Printf("| %s | %d | %.2f | %d |\n", s.name, conns, u.megabytes(), u.Goroutines)
		}
		fmt.Println()
	}
	if fleet > 0 {
		var sp spread
		var err error
		synctest.Test(t, func(*testing.T) { sp, err = subsets(fleet) })
		if err != nil {
			return err
		}
		fmt.Printf("%d clients with subsets of %d of %d servers: %d connections, a server has %d to %d.\n"+
			"One server of a hundred drains: %d new ones, of which %d had to be. They are back: %d connections.\n\n",
			fleet, subset, fleet, sp.conns, sp.fewest, sp.most, sp.fresh, sp.freshNeed, sp.after)
	}
	if sockets == 0 {
		return nil
	}
	srv, err := startServer()
	if err != nil {
		return err
	}
	defer srv.stop()
	fmt.Printf("A channel over the loopback, %d servers, %d keys:\n\n", sockets, keys)
	fmt.Println("| config, calls | connections | client: MB | goroutines | files | servers: MB | goroutines | KB a connection, client | server |\n" +
		"| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, s := range setups {
		c, err := s.connected(srv, sockets, keys)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		per := func(u usage) float64 { return u.megabytes() * 1000 / float64(max(c.conns, 1)) }
		fmt.Printf("| %s | %d | %.1f | %d | %d | %.1f | %d | %.0f | %.0f |\n", s.name, c.conns, c.client.megabytes(),
			c.client.Goroutines, c.client.Files, c.server.megabytes(), c.server.Goroutines, per(c.client), per(c.server))
	}
	return nil
}
