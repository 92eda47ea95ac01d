package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"tunneld/internal/api"
)

func newVersion(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "what this program is",
		Long:  versionUsage,
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(c.out, "tunneld %s\n", api.ThisVersion())
			return err
		},
	}
}
