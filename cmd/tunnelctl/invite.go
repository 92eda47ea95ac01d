package main

import (
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"tunneld/internal/api"
)

func newInvite(c *cli) *cobra.Command {
	var (
		req       api.InviteRequest
		advertise []string
		ttl       time.Duration
	)
	cmd := &cobra.Command{
		Use:               "invite NODE",
		Short:             "print an invite code for a node",
		Long:              inviteUsage,
		Args:              wants("NODE"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Node = args[0]
			if req.Advertise, err = parsePrefixes(cmd, advertise); err != nil {
				return err
			}
			if ttl < time.Second {
				return usageOf(cmd, "--ttl is %v, want 1s or more", ttl)
			}
			req.TTLMillis = ttl.Milliseconds()
			return c.invite(cmd, req)
		},
	}
	cmd.Flags().StringArrayVar(&req.Networks, "network", nil, "a network the node may enter")
	cmd.Flags().StringArrayVar(&advertise, "advertise", nil, "a prefix the node may announce")
	cmd.Flags().StringVar(&req.RateUp, "rate-up", "", "the most the node may send")
	cmd.Flags().StringVar(&req.RateDown, "rate-down", "", "the most the node may receive")
	cmd.Flags().StringVar(&req.Direction, "direction", "", "up or down: the one way that is open")
	_ = cmd.RegisterFlagCompletionFunc("direction", cobra.FixedCompletions([]string{"up", "down", "duplex"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long the code is good")
	cmd.Flags().BoolVar(&req.Replace, "replace", false, "give an enrolled node a new identity")
	return cmd
}

// invite prints the code and nothing else on stdout: it is made to be piped.
func (c *cli) invite(cmd *cobra.Command, req api.InviteRequest) error {
	reply, err := c.client().Invite(cmd.Context(), req)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(reply)
	}
	if _, err := c.out.WriteString(printable(reply.Code) + "\n"); err != nil {
		return err
	}
	c.hint("on node %s run `tunnelctl join -` and give it this line; it is a secret, good once, until %s",
		req.Node, stamp(&reply.ExpiresAt))
	return nil
}

func parsePrefixes(cmd *cobra.Command, texts []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, usageOf(cmd, "--advertise %q is no prefix such as 10.20.0.0/16", text)
		}
		if err := api.CheckPrefix(p); err != nil {
			return nil, usageOf(cmd, "--advertise: %v", err)
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}
