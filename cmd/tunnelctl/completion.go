package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// shells are those that completion can be had for.
var shells = []string{"bash", "zsh", "fish", "powershell"}

// newCompletion takes the place of cobra's own verb, which answers a shell that
// it does not know with its help and status 0.
func newCompletion(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "shell completion",
		Long:  completionUsage,
		Args: func(cmd *cobra.Command, args []string) error {
			err := wants("SHELL")(cmd, args)
			if err == nil && !slices.Contains(shells, args[0]) {
				return usageOf(cmd, "no completion for shell %q: there is one for %s", args[0], strings.Join(shells, ", "))
			}
			return err
		},
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(c.out, true)
			case "zsh":
				return root.GenZshCompletion(c.out)
			case "fish":
				return root.GenFishCompletion(c.out, true)
			}
			return root.GenPowerShellCompletionWithDesc(c.out)
		},
	}
}
