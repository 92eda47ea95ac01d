package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"tunneld/internal/api"
)

func newNodeList(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Short:             "the nodes that were invited",
		Long:              nodeListUsage,
		Args:              wants(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			nodes, err := c.client().Nodes(cmd.Context())
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(nodes)
			}
			return c.table(nodeRows(nodes))
		},
	}
}

func nodeRows(nodes []api.Node) [][]string {
	rows := [][]string{{"NODE", "STATE", "NETWORKS", "ADVERTISE", "LIMITS", "SESSIONS", "EXPIRES", "ID"}}
	for _, n := range nodes {
		rows = append(rows, []string{
			n.Name, n.State, list(n.Networks), list(n.Advertise), limitsOf(n.Limits), strconv.Itoa(n.Sessions), stamp(n.ExpiresAt), word(n.ID),
		})
	}
	return rows
}
