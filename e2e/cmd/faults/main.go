// Command faults plays every fault that etcd, a server or the network can have to a
// small world of real processes, and prints what each did to calls. It exits with 1 if
// one is not within its target.
//
//	go run ./e2e/cmd/faults [-short] [-run part-of-a-name]
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/homing-grpc/homing/e2e/faults"
)

func main() {
	faults.Main()
	short := flag.Bool("short", false, "play the short form")
	only := flag.String("run", "", "play only rows whose group or name has this in it")
	flag.Parse()
	var results []faults.Result
	wrong := 0
	for _, row := range faults.Rows(*short) {
		if !strings.Contains(row.Group+": "+row.Name, *only) {
			continue
		}
		r, err := faults.Run(row)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %s: %v\n", row.Group, row.Name, err)
			os.Exit(1)
		}
		if len(r.Wrong) > 0 {
			wrong++
		}
		fmt.Fprintf(os.Stderr, "%-9s %-60s %5.1f s, %d wrong\n", r.Group, r.Name, r.Took.Seconds(), len(r.Wrong))
		results = append(results, r)
	}
	fmt.Fprintln(os.Stderr)
	faults.Print(os.Stdout, results)
	if wrong > 0 {
		os.Exit(1)
	}
}
