package main

import "github.com/spf13/cobra"

func newSessionKill(c *cli) *cobra.Command {
	var reason string
	var at ifSerial
	cmd := &cobra.Command{
		Use:               "kill ID",
		Short:             "close a session",
		Long:              sessionKillUsage,
		Args:              wants("ID"),
		ValidArgsFunction: c.completeSessions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.client().KillSession(at.context(cmd), args[0], reason)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "goes to the node and into the record")
	at.flagOf(c, cmd, c.sessionSerial)
	return cmd
}
