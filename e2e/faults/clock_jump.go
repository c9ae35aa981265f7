//go:build clockjump

package faults

import (
	"bufio"
	"fmt"
	"os"
	"time"
)

// This is built only with the time package of buildJumper.

func init() {
	jump = time.Jump
	switch os.Getenv(roleVar) {
	case "etcd", "server":
		go jumpWhenTold()
	}
}

// jumpWhenTold makes the clock jump by what the lines of standard input say.
func jumpWhenTold() {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if d, err := time.ParseDuration(in.Text()); err == nil {
			time.Jump(d)
			fmt.Println("jumped by", d)
		}
	}
}
