package main

import "github.com/spf13/cobra"

func newDown(c *cli) *cobra.Command {
	var at ifSerial
	cmd := &cobra.Command{
		Use:               "down TUNNEL",
		Short:             "stop a tunnel, until the next up",
		Long:              downUsage,
		Args:              wants("TUNNEL"),
		ValidArgsFunction: c.completeTunnels,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.client().Down(at.context(cmd), args[0])
		},
	}
	at.flagOf(c, cmd, c.tunnelSerial)
	return cmd
}
