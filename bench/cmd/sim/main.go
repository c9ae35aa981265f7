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
)

func main() {
	cfg := sim.Config{Log: os.Stderr}
	flag.IntVar(&cfg.Servers, "servers", 1000, "how many servers there are at first, 10 to 50,000")
	flag.IntVar(&cfg.Clients, "clients", 1000, "how many clients traffic and connections are counted for")
	flag.IntVar(&cfg.Keys, "keys", 1_000_000, "how many keys there are, each with a session")
	flag.IntVar(&cfg.Sampled, "sampled", 20, "how many of the clients are whole")
	flag.StringVar(&cfg.Policy.Connect, "connect", "EAGER", `"connect" of the clients' config, "EAGER" or "LAZY"`)
	flag.IntVar(&cfg.Policy.SubsetSize, "subset", 0, `"subsetSize" of it`)
	quiet := flag.Bool("quiet", false, "print the tables only")
	flag.Parse()
	if *quiet {
		cfg.Log = nil
	}
	if cfg.Servers < 10 || cfg.Servers > 50_000 || cfg.Keys < 1 || cfg.Sampled < 1 || cfg.Clients < cfg.Sampled {
		fmt.Fprintln(os.Stderr, "sim: -servers must be 10 to 50000, -keys and -sampled 1 or more, and -clients no less than -sampled")
		os.Exit(2)
	}
	// Fake time is for tests only, so this is one. It exits with its status.
	testing.Main(func(string, string) (bool, error) { return true, nil },
		[]testing.InternalTest{{Name: "sim", F: func(t *testing.T) { sim.Run(t, cfg).Print(os.Stdout) }}}, nil, nil)
}
