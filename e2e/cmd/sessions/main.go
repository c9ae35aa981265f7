// Command sessions shows what happens to sessions while servers come and go: it runs
// an etcd, five servers and a client in one process, lets a server join, drains one,
// kills one and restarts one, under calls, and prints what moved.
//
//	go run ./e2e/cmd/sessions [-sessions 2000]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"
)

func main() {
	n := flag.Int("sessions", 2000, "how many sessions there are, 100 to 100,000")
	flag.Parse()
	if *n < 100 || *n > 100_000 {
		fmt.Fprintf(os.Stderr, "sessions: -sessions must be 100 to 100000, got %d\n", *n)
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	r, err := run(ctx, *n)
	if err == nil {
		r.print(os.Stdout)
		err = r.check()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sessions:", err)
		os.Exit(1)
	}
}
