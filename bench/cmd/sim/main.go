// Command sim plays a fleet to a few clients of it, in fake time: servers restart one
// after another, a zone is lost and comes back, half as many join, etcd is out. It prints
// what moved, what had to, and what it cost, and exits with status 1 if anything moved
// without need.
//
//	go run ./bench/cmd/sim [-servers 1000] [-clients 1000] [-keys 1000000] [-connect LAZY -subset 20]
//
// What is real and what is not is in the doc of package bench/sim.
package main

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/homing-grpc/homing/bench/sim"
	"github.com/homing-grpc/homing/stickybalancer"
)

func main() {
	cfg := sim.Config{Log: os.Stderr}
	flag.IntVar(&cfg.Servers, "servers", 1000, "how many servers there are at first, 10 to 50,000")
	flag.IntVar(&cfg.Clients, "clients", 1000, "how many clients traffic and connections are counted for")
	flag.IntVar(&cfg.Keys, "keys", 1_000_000, "how many keys there are, each with a session")
	flag.IntVar(&cfg.Sampled, "sampled", 20, "how many of the clients are whole; by default no more than there are")
	flag.StringVar(&cfg.Policy.Connect, "connect", "EAGER", "\"connect\" of the clients' config, EAGER or LAZY")
	flag.IntVar(&cfg.Policy.SubsetSize, "subset", 0, "\"subsetSize\" of it; 0: no subsets")
	quiet := flag.Bool("quiet", false, "print the tables only")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "sim plays a fleet in fake time, and prints what moved, what had to, and what it cost.\n"+
			"It exits with status 1 if anything moved without need.\n\nusage: sim [flags]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *quiet {
		cfg.Log = nil
	}
	sampled := false
	flag.Visit(func(f *flag.Flag) { sampled = sampled || f.Name == "sampled" })
	if !sampled {
		cfg.Sampled = max(min(cfg.Sampled, cfg.Clients), 1)
	}
	if err := check(cfg, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(2)
	}
	// Fake time is for tests only, so this is one. It exits with its status.
	testing.Main(func(string, string) (bool, error) { return true, nil },
		[]testing.InternalTest{{Name: "sim", F: func(t *testing.T) { sim.Run(t, cfg).Print(os.Stdout) }}}, nil, nil)
}

// check says which flag is wrong.
func check(cfg sim.Config, args []string) error {
	for _, f := range []struct {
		name             string
		got, least, most int
	}{
		{"servers", cfg.Servers, 10, 50_000},
		{"clients", cfg.Clients, 1, 10_000_000},
		{"keys", cfg.Keys, 1, 100_000_000},
		{"sampled", cfg.Sampled, 1, cfg.Clients},
		{"subset", cfg.Policy.SubsetSize, 0, 50_000},
	} {
		if f.got < f.least || f.got > f.most {
			return fmt.Errorf("-%s must be %d to %d, got %d", f.name, f.least, f.most, f.got)
		}
	}
	if c := cfg.Policy.Connect; c != stickybalancer.ConnectEager && c != stickybalancer.ConnectLazy {
		return fmt.Errorf("-connect must be EAGER or LAZY, got %q", c)
	}
	if len(args) > 0 {
		return fmt.Errorf("there are flags only, got %q", args[0])
	}
	return nil
}
