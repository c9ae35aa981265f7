// Package operator is the command homing.
package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/urfave/cli/v3"
)

// What Run returns, for the shell.
const (
	statusFine    = 0
	statusFound   = 1 // findings, or a server that did not heed
	statusNotDone = 2 // called wrongly, or etcd could not be asked
)

// errFound says that there are findings, which have been printed.
var errFound = errors.New("there are findings")

// unheeded is what a server has not done.
type unheeded struct{ error }

// Run is the command. args begins with its name. It returns the exit status.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := newRoot(stdout, stderr).Run(ctx, args)
	switch {
	case err == nil:
		return statusFine
	case errors.Is(err, errFound):
		return statusFound
	}
	fmt.Fprintln(stderr, "homing:", err)
	if _, ok := errors.AsType[unheeded](err); ok {
		return statusFound
	}
	return statusNotDone
}

func newRoot(stdout, stderr io.Writer) *cli.Command {
	root := &cli.Command{
		Name:    "homing",
		Usage:   "the servers of a service, as etcd has them",
		Version: version(),
		Description: `A service is a key prefix in etcd: the server game-1 of the service game has the
record game/game-1. Name a server by -s game game-1, or by game/game-1.

Flags win over the environment, which is etcdctl's: ETCDCTL_ENDPOINTS, ETCDCTL_CACERT,
ETCDCTL_CERT, ETCDCTL_KEY, ETCDCTL_USER, ETCDCTL_PASSWORD, ETCDCTL_DIAL_TIMEOUT,
ETCDCTL_COMMAND_TIMEOUT, ETCDCTL_INSECURE_SKIP_TLS_VERIFY. Its own are HOMING_SERVICE,
HOMING_NAMESPACE and HOMING_PLAIN_ADDRESSES.

Exit status: 0 if all is well; 1 if there are findings, a server has not heeded, or a key
has no home; 2 if the command is wrong, or etcd cannot be asked.

Examples:

   homing ls game                          # the servers of game
   homing watch game                       # what changes, until Ctrl-C
   homing drain game/game-1                # it keeps what it has and takes nothing new
   homing where -s game player-7           # where the key player-7 lives
   homing check || page-somebody           # is something wrong with any record?
   source <(homing completion bash)        # with bash-completion; or zsh, fish, pwsh

Shells complete ids where the service is named, by -s or HOMING_SERVICE.`,
		Writer:                stdout,
		ErrWriter:             stderr,
		ExitErrHandler:        func(context.Context, *cli.Command, error) {}, // Run is called by tests, too
		EnableShellCompletion: true,
		ConfigureShellCompletionCommand: func(c *cli.Command) {
			c.Hidden = false
			c.Usage = "print a completion script for bash, zsh, fish or pwsh"
		},
		Flags: append(etcdFlags(), &cli.StringFlag{
			Name: "service", Aliases: []string{"s"}, Usage: "the service, a key prefix, where no argument names one", Sources: cli.EnvVars("HOMING_SERVICE"),
		}, &cli.StringFlag{
			Name: "namespace", Usage: "what is before all keys, if clients and servers use etcd's clientv3/namespace, like prod/", Sources: cli.EnvVars("HOMING_NAMESPACE"),
		}, &cli.StringFlag{
			Name: "output", Aliases: []string{"o"}, Usage: "table or json", Value: "table", Validator: validOutput,
		}),
		Action: func(_ context.Context, c *cli.Command) error {
			if c.Args().Present() {
				return fmt.Errorf("command must be one of those in homing -h, got %q", c.Args().First())
			}
			return cli.ShowRootCommandHelp(c)
		},
		Commands: []*cli.Command{
			lsCommand(), watchCommand(), drainCommand(), undrainCommand(), weightCommand(), whereCommand(), checkCommand(),
		},
	}
	for _, c := range root.Commands {
		c.HideHelpCommand = true // a key, an id and a service may be h, or help
		// Of homing drain game/game-1 -h: the library looks for a command game/game-1.
		c.CommandNotFound = func(_ context.Context, c *cli.Command, _ string) { _ = cli.ShowSubcommandHelp(c) }
	}
	for _, c := range append(root.Commands, root) {
		c.OnUsageError = func(_ context.Context, _ *cli.Command, err error, _ bool) error { return err }
	}
	return root
}

func validOutput(s string) error {
	if s != "table" && s != "json" {
		return fmt.Errorf("output must be table or json, got %q", s)
	}
	return nil
}

func version() string {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		return "unknown"
	}
	return cmp.Or(info.Main.Version, "unknown")
}

// arguments returns the command's arguments, or an error that says which there are.
func arguments(c *cli.Command, atLeast, atMost int) ([]string, error) {
	if n := c.Args().Len(); n < atLeast || n > atMost {
		return nil, fmt.Errorf("%s must be called as: homing %s %s, got %d arguments", c.Name, c.Name, c.ArgsUsage, n)
	}
	return c.Args().Slice(), nil
}
