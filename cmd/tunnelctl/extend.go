package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func newExtend(c *cli) *cobra.Command {
	var by time.Duration
	var at ifSerial
	cmd := &cobra.Command{
		Use:               "extend TUNNEL",
		Short:             "ask for a longer life of a tunnel's session",
		Long:              extendUsage,
		Args:              wants("TUNNEL"),
		ValidArgsFunction: c.completeTunnels,
		RunE: func(cmd *cobra.Command, args []string) error {
			if by < time.Second {
				return usageOf(cmd, "--by is %v, want at least 1s", by)
			}
			tunnel, err := c.client().Extend(at.context(cmd), args[0], by)
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(tunnel)
			}
			_, err = fmt.Fprintf(c.out, "%s: lives until %s\n", printable(tunnel.Name), stamp(tunnel.ExpiresAt))
			return err
		},
	}
	cmd.Flags().DurationVar(&by, "by", time.Hour, "how much longer")
	at.flagOf(c, cmd, c.tunnelSerial)
	return cmd
}
