package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/host"
)

// Exit statuses: a contract with scripts and unit files, see tunneld(8).
const (
	exitDone       = 0
	exitFailed     = 1
	exitUsage      = 2
	exitNotAllowed = 5
)

// cli is one call of the program. Results go to out and nowhere else,
// everything else to stderr.
type cli struct {
	out    *bufio.Writer // stdout; keeps its first error
	stderr io.Writer
	env    func(string) string
}

// run does what args say, until ctx ends, and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, env func(string) string) int {
	c := &cli{out: bufio.NewWriter(stdout), stderr: stderr, env: env}
	root := newRoot(c)
	root.SetArgs(args)
	root.SetOut(c.out)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if flushed := c.out.Flush(); err == nil && flushed != nil {
		err = fmt.Errorf("standard output: %w", flushed)
	}
	return c.report(err)
}

// newRoot builds the command with all its verbs. Cobra prints nothing by
// itself: errors are ours to report, usage texts are written by hand.
func newRoot(c *cli) *cobra.Command {
	root := &cobra.Command{
		Use:           "tunneld",
		Short:         "session control for encrypted tunnels",
		Long:          rootUsage,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageOf(cmd, "a verb is missing")
			}
			return usageOf(cmd, "unknown verb %q", args[0])
		},
		RunE: func(*cobra.Command, []string) error { return nil }, // Args refuses everything
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageOf(cmd, "%v", err) })
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(cmd.Long)) })
	root.SetUsageFunc(func(cmd *cobra.Command) error { return usageOf(cmd, "see its help") })
	root.AddCommand(newInit(c), newRun(c), newCheck(c), newVersion(c))
	strictCompletion(root)
	return root
}

// strictCompletion makes cobra's verb for the shells refuse one that it does not
// know, which it answers with its help and status 0.
func strictCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	cmd, _, err := root.Find([]string{"completion"})
	if err != nil {
		panic(err) // it was made a line above
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageOf(cmd, "a shell is missing")
		}
		return usageOf(cmd, "no completion for shell %q", args[0])
	}
	cmd.RunE = func(*cobra.Command, []string) error { return nil } // Args refuses everything
}

// usageError is a mistake in the command line.
type usageError struct{ message, hint string }

func (e *usageError) Error() string { return e.message }

func usageOf(cmd *cobra.Command, format string, args ...any) *usageError {
	return &usageError{
		message: fmt.Sprintf(format, args...),
		hint:    fmt.Sprintf("`%s --help` shows how it is used", cmd.CommandPath()),
	}
}

// noArgs refuses arguments that are no flags.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageOf(cmd, "unexpected argument %q", args[0])
	}
	return nil
}

// report prints an error, one problem a line, and returns the exit status.
func (c *cli) report(err error) int {
	if err == nil {
		return exitDone
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(c.stderr, "tunneld: error: %s\n", strings.TrimRight(line, "\n"))
	}
	status, hint := classify(err)
	if hint != "" {
		fmt.Fprintf(c.stderr, "tunneld: hint: %s\n", hint)
	}
	return status
}

// classify finds the exit status of an error and the way out of it.
func classify(err error) (status int, hint string) {
	if e, ok := errors.AsType[*usageError](err); ok {
		return exitUsage, e.hint
	}
	if errors.Is(err, host.ErrNotPermitted) || errors.Is(err, engine.ErrNotPermitted) {
		return exitNotAllowed, "run it as root, or give it CAP_NET_ADMIN and CAP_NET_BIND_SERVICE as tunneld.service does"
	}
	return exitFailed, ""
}
