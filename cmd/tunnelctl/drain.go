package main

import (
	"time"

	"github.com/spf13/cobra"

	"tunneld/internal/api"
)

func newDrain(c *cli) *cobra.Command {
	var req api.DrainRequest
	var over time.Duration
	cmd := &cobra.Command{
		Use:               "drain",
		Short:             "have the nodes leave this gateway",
		Long:              drainUsage,
		Args:              wants(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Cancel && (len(req.To) > 0 || cmd.Flags().Changed("over")) {
				return usageOf(cmd, "--cancel stands alone")
			}
			if over < 0 {
				return usageOf(cmd, "--over is %v, want 0 or more", over)
			}
			req.OverMillis = over.Milliseconds()
			return c.client().Drain(cmd.Context(), req)
		},
	}
	cmd.Flags().StringArrayVar(&req.To, "to", nil, "HOST:PORT of a gateway to go to")
	cmd.Flags().DurationVar(&over, "over", 30*time.Second, "how long it may take")
	cmd.Flags().BoolVar(&req.Cancel, "cancel", false, "the gateway stays")
	return cmd
}
