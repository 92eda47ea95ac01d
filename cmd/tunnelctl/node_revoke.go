package main

import "github.com/spf13/cobra"

func newNodeRevoke(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "revoke NODE",
		Short:             "end a node's rights and its sessions",
		Long:              nodeRevokeUsage,
		Args:              wants("NODE"),
		ValidArgsFunction: c.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.client().RevokeNode(cmd.Context(), args[0])
		},
	}
}

// completeNodes offers the nodes of this gateway to the shell.
func (c *cli) completeNodes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	nodes, err := c.client().Nodes(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
