package main

import "github.com/spf13/cobra"

func newLeave(c *cli) *cobra.Command {
	var at ifSerial
	cmd := &cobra.Command{
		Use:               "leave TUNNEL",
		Short:             "stop a tunnel and forget it",
		Long:              leaveUsage,
		Args:              wants("TUNNEL"),
		ValidArgsFunction: c.completeTunnels,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.client().Leave(at.context(cmd), args[0])
		},
	}
	at.flagOf(c, cmd, c.tunnelSerial)
	return cmd
}
