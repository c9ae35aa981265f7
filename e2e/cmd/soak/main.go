// Command soak plays random faults to a small world of real processes under load, and
// checks all the while that no session is on two servers while both live, that no call is
// lost but those that a fault of the moment excuses, and that nothing grows. It prints
// the seed that the faults are drawn from, then a line for each event. It ends with a
// table, and with status 1 and what it did if something was wrong.
//
//	go run ./e2e/cmd/soak [-duration 1m] [-seed n] [-servers 4] [-etcd 1]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/homing-grpc/homing/e2e/faults"
)

func main() {
	faults.Main()
	o, err := parse(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second one ends it at once
	fmt.Println("seed", o.Seed)
	o.Log = os.Stdout
	r, err := o.Run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
	fmt.Println()
	faults.PrintSoak(os.Stdout, r)
	if len(r.Wrong) > 0 {
		os.Exit(1)
	}
}

// parse reads the flags. Without a seed it makes one up.
func parse(args []string, help io.Writer) (o faults.Soak, err error) {
	f := flag.NewFlagSet("soak", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.DurationVar(&o.Duration, "duration", time.Minute, "how long faults are played")
	f.Uint64Var(&o.Seed, "seed", 0, "what the faults are drawn from; random if it is not given")
	f.IntVar(&o.Servers, "servers", 4, "how many game servers there are, 3 to 8")
	f.IntVar(&o.Members, "etcd", 1, "how many members etcd has, 1 or 3")
	if err = f.Parse(args); errors.Is(err, flag.ErrHelp) {
		f.SetOutput(help)
		fmt.Fprintln(help, "usage: soak [flags]")
		f.PrintDefaults()
		return o, err
	}
	seeded := false
	f.Visit(func(f *flag.Flag) { seeded = seeded || f.Name == "seed" })
	if !seeded {
		o.Seed = uint64(rand.Uint32())
	}
	switch {
	case err != nil:
		return o, err
	case f.NArg() > 0:
		return o, fmt.Errorf("there are no arguments but flags, got %q", strings.Join(f.Args(), " "))
	case o.Duration < 10*time.Second || o.Duration > 24*time.Hour:
		return o, fmt.Errorf("-duration must be 10s to 24h, got %v", o.Duration)
	case o.Servers < 3 || o.Servers > 8:
		return o, fmt.Errorf("-servers must be 3 to 8, got %d", o.Servers)
	case o.Members != 1 && o.Members != 3:
		return o, fmt.Errorf("-etcd must be 1 or 3, got %d", o.Members)
	}
	return o, nil
}
