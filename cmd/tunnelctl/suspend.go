package main

import "github.com/spf13/cobra"

func newSuspend(c *cli) *cobra.Command {
	var at ifSerial
	cmd := &cobra.Command{
		Use:               "suspend TUNNEL",
		Short:             "let nothing pass a tunnel, and keep its session",
		Long:              suspendUsage,
		Args:              wants("TUNNEL"),
		ValidArgsFunction: c.completeTunnels,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.client().Suspend(at.context(cmd), args[0])
		},
	}
	at.flagOf(c, cmd, c.tunnelSerial)
	return cmd
}

func newResume(c *cli) *cobra.Command {
	var at ifSerial
	cmd := &cobra.Command{
		Use:               "resume TUNNEL",
		Short:             "go on with a tunnel that was suspended",
		Long:              resumeUsage,
		Args:              wants("TUNNEL"),
		ValidArgsFunction: c.completeTunnels,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.client().Resume(at.context(cmd), args[0])
		},
	}
	at.flagOf(c, cmd, c.tunnelSerial)
	return cmd
}
