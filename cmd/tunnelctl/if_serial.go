package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"tunneld/internal/api"
)

// ifSerial is the flag of the verbs that change a session.
type ifSerial struct{ at uint64 }

// flagOf adds the flag to a verb; serials are what completes it, of a tunnel or a
// session.
func (i *ifSerial) flagOf(c *cli, cmd *cobra.Command, serial func(cmd *cobra.Command, of string) *uint64) {
	cmd.Flags().Uint64Var(&i.at, "if-serial", 0, "only if the session is still at this serial")
	err := cmd.RegisterFlagCompletionFunc("if-serial", func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 1 {
			if at := serial(cmd, args[0]); at != nil {
				return []string{strconv.FormatUint(*at, 10)}, cobra.ShellCompDirectiveNoFileComp
			}
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	})
	if err != nil {
		panic(err) // the flag is there
	}
}

// context is that of the verb's request.
func (i *ifSerial) context(cmd *cobra.Command) context.Context {
	return api.WithIfSerial(cmd.Context(), i.at)
}

// tunnelSerial is the serial of a tunnel's session.
func (c *cli) tunnelSerial(cmd *cobra.Command, name string) *uint64 {
	status, err := c.client().Status(cmd.Context())
	if err != nil {
		return nil
	}
	for _, t := range status.Tunnels {
		if t.Name == name {
			return t.Serial
		}
	}
	return nil
}

// sessionSerial is the serial of a session.
func (c *cli) sessionSerial(cmd *cobra.Command, id string) *uint64 {
	detail, err := c.client().Session(cmd.Context(), id)
	if err != nil {
		return nil
	}
	return detail.Serial
}
