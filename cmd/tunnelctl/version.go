package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"tunneld/internal/api"
)

// versions is the answer of `version --json`; the daemon's is null if none runs.
type versions struct {
	Tunnelctl api.Version  `json:"tunnelctl"`
	Tunneld   *api.Version `json:"tunneld"`
}

func newVersion(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "version",
		Short:             "of this program and of the daemon",
		Long:              versionUsage,
		Args:              wants(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			both := versions{Tunnelctl: api.ThisVersion()}
			daemon, err := c.client().Version(cmd.Context())
			if err != nil && !errors.Is(err, api.ErrNoDaemon) && !errors.Is(err, api.ErrNotPermitted) {
				return err
			}
			if err == nil {
				both.Tunneld = &daemon
			}
			return c.showVersions(both, err)
		},
	}
}

// showVersions prints both; that there is no daemon to ask is no failure.
func (c *cli) showVersions(v versions, noDaemon error) error {
	if c.json {
		return c.printJSON(v)
	}
	fmt.Fprintf(c.out, "tunnelctl %s\n", v.Tunnelctl)
	if v.Tunneld != nil {
		fmt.Fprintf(c.out, "tunneld %s\n", printable(v.Tunneld.String()))
		return nil
	}
	c.hint("the daemon's version is not known: %v", noDaemon)
	return nil
}
