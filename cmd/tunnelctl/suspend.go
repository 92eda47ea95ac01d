package main

import "github.com/spf13/cobra"

func newSuspend(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "suspend TUNNEL",
		Short:             "let nothing pass a tunnel, and keep its session",
		Long:              suspendUsage,
		Args:              wants("TUNNEL"),
		ValidArgsFunction: c.completeTunnels,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.client().Suspend(cmd.Context(), args[0])
		},
	}
}

func newResume(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "resume TUNNEL",
		Short:             "go on with a tunnel that was suspended",
		Long:              resumeUsage,
		Args:              wants("TUNNEL"),
		ValidArgsFunction: c.completeTunnels,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.client().Resume(cmd.Context(), args[0])
		},
	}
}
