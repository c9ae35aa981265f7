// Command homing shows an operator the servers of a service as etcd has them, drains and
// weighs them, tells where a key lives, and checks the records.
//
//	go install github.com/homing-grpc/homing/cmd/homing@latest
//	homing -h
//
// It exits with 0 if all is well, with 1 if it has findings or a server did not heed it, and
// with 2 if it was called wrongly or etcd could not be asked.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/homing-grpc/homing/internal/operator"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second one ends it whatever it waits for
	status := operator.Run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}
