package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tunneld/internal/api"
)

// Exit statuses: a contract with scripts, see tunnelctl(1).
const (
	exitDone       = 0
	exitFailed     = 1
	exitUsage      = 2
	exitNoDaemon   = 3
	exitNoSuch     = 4
	exitNotAllowed = 5
	exitStale      = 6
)

// defaultSocket is where the daemon listens unless told otherwise.
const defaultSocket = "/run/tunneld/tunneld.sock"

// cli is one call of the program. Results go to out and nowhere else,
// everything else to stderr; with nothing to say it is silent.
type cli struct {
	stdin  io.Reader
	out    *bufio.Writer // stdout; keeps its first error
	stderr io.Writer
	now    func() time.Time

	socket string
	json   bool
}

// run does what args say and returns the exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer, env func(string) string) int {
	c := &cli{stdin: stdin, out: bufio.NewWriter(stdout), stderr: stderr, now: time.Now}
	root := newRoot(c, env)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(c.out)
	root.SetErr(stderr)
	err := root.Execute()
	if flushed := c.out.Flush(); err == nil && flushed != nil {
		err = fmt.Errorf("standard output: %w", flushed)
	}
	return c.report(err)
}

// client is the daemon behind the socket.
func (c *cli) client() *api.Client { return api.Dial(c.socket) }

// newRoot builds the command with all its verbs. Cobra prints nothing by
// itself: errors are ours to report, usage texts are written by hand.
func newRoot(c *cli, env func(string) string) *cobra.Command {
	socket := env("TUNNELD_SOCKET")
	if socket == "" {
		socket = defaultSocket
	}
	root := newGroup("tunnelctl", rootUsage)
	root.Short = "show and steer the tunneld of this machine"
	root.SilenceErrors, root.SilenceUsage = true, true
	root.PersistentFlags().StringVar(&c.socket, "socket", socket, "the daemon's socket")
	root.PersistentFlags().BoolVar(&c.json, "json", false, "print JSON")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageOf(cmd, "%v", err) })
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(cmd.Long)) })
	root.SetUsageFunc(func(cmd *cobra.Command) error { return usageOf(cmd, "see its help") })

	session := newGroup("session", sessionUsage)
	session.Short = "show, end or release one session"
	session.AddCommand(newSessionShow(c), newSessionKill(c), newSessionRelease(c))
	node := newGroup("node", nodeUsage)
	node.Short = "list or revoke nodes"
	node.AddCommand(newNodeList(c), newNodeRevoke(c))
	root.AddCommand(
		newInvite(c), newJoin(c), newUp(c), newDown(c), newSuspend(c), newResume(c), newExtend(c), newLeave(c), newDrain(c), newStatus(c),
		newSessions(c), session, node, newEvents(c), newVersion(c), newCompletion(c),
	)
	return root
}

// newGroup is a command that only has others below it.
func newGroup(name, usage string) *cobra.Command {
	return &cobra.Command{
		Use:  name,
		Long: usage,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageOf(cmd, "a verb is missing")
			}
			err := usageOf(cmd, "unknown verb %q", args[0])
			cmd.SuggestionsMinimumDistance = 2
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				err.hint = fmt.Sprintf("did you mean `%s %s`?", cmd.CommandPath(), near[0])
			}
			return err
		},
		RunE: func(*cobra.Command, []string) error { return nil }, // Args refuses everything
	}
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

// wants makes a verb refuse any other number of arguments than it names.
func wants(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usageOf(cmd, "%s is missing", names[len(args)])
		case len(args) > len(names):
			return usageOf(cmd, "unexpected argument %q", args[len(names)])
		}
		for i, arg := range args {
			if arg == "" {
				return usageOf(cmd, "%s is empty", names[i])
			}
		}
		return nil
	}
}

// report prints an error, if there is one, and returns the exit status.
func (c *cli) report(err error) int {
	if err == nil {
		return exitDone
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(c.stderr, "tunnelctl: error: %s\n", printable(strings.TrimRight(line, "\n")))
	}
	status, hint := classify(err)
	if hint != "" {
		c.hint("%s", hint)
	}
	return status
}

// hint says something useful that is no result.
func (c *cli) hint(format string, args ...any) {
	fmt.Fprintf(c.stderr, "tunnelctl: hint: %s\n", printable(fmt.Sprintf(format, args...)))
}

// classify finds the exit status of an error and the way out of it.
func classify(err error) (status int, hint string) {
	if e, ok := errors.AsType[*usageError](err); ok {
		return exitUsage, e.hint
	}
	switch {
	case errors.Is(err, api.ErrNoDaemon):
		return exitNoDaemon, "is tunneld running? another daemon's socket is named by --socket or $TUNNELD_SOCKET"
	case errors.Is(err, api.ErrNotPermitted):
		return exitNotAllowed, "run it as root (sudo), or be added to group " + api.Group + " and log in again"
	}
	e, ok := errors.AsType[*api.Error](err)
	if !ok {
		return exitFailed, ""
	}
	switch e.Code {
	case api.Usage:
		return exitUsage, e.Hint
	case api.NoSuch:
		return exitNoSuch, e.Hint
	case api.NotAllowed:
		return exitNotAllowed, e.Hint
	case api.Stale:
		return exitStale, e.Hint
	}
	return exitFailed, e.Hint
}

// completeTunnels offers the names of this node's tunnels to the shell.
func (c *cli) completeTunnels(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	status, err := c.client().Status(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, t := range status.Tunnels {
		names = append(names, t.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeSessions offers the sessions of this gateway to the shell.
func (c *cli) completeSessions(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	sessions, err := c.client().Sessions(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, s := range sessions {
		ids = append(ids, s.Session+"\t"+printable(s.Node)+" in "+printable(s.Network))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
