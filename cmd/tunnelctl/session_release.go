package main

import "github.com/spf13/cobra"

func newSessionRelease(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "release ID",
		Short:             "let a session out of quarantine",
		Long:              sessionReleaseUsage,
		Args:              wants("ID"),
		ValidArgsFunction: c.completeSessions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.client().ReleaseSession(cmd.Context(), args[0])
		},
	}
}
