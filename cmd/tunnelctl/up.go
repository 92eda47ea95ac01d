package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"tunneld/internal/api"
)

func newUp(c *cli) *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:               "up TUNNEL",
		Short:             "start a tunnel and wait for its session",
		Long:              upUsage,
		Args:              wants("TUNNEL"),
		ValidArgsFunction: c.completeTunnels,
		RunE: func(cmd *cobra.Command, args []string) error {
			if wait < 0 || wait > api.MaxWait {
				return usageOf(cmd, "--wait is %v, want 0s to %v", wait, api.MaxWait)
			}
			tunnel, err := c.client().Up(cmd.Context(), args[0], wait)
			if err != nil {
				return err
			}
			return c.showUp(tunnel)
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait for the session")
	return cmd
}

func (c *cli) showUp(t api.Tunnel) error {
	if c.json {
		return c.printJSON(t)
	}
	line := t.Name + ": " + t.State
	if t.Session != nil {
		line += ", session " + *t.Session
	}
	if len(t.Addresses) > 0 {
		line += ", addresses " + list(t.Addresses)
	}
	if t.Interface != nil {
		line += ", interface " + *t.Interface
	}
	_, err := fmt.Fprintln(c.out, printable(line))
	return err
}
