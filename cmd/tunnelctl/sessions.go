package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"tunneld/internal/api"
)

func newSessions(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "sessions",
		Short:             "the sessions of this gateway",
		Long:              sessionsUsage,
		Args:              wants(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			sessions, err := c.client().Sessions(cmd.Context())
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(sessions)
			}
			return c.table(c.sessionRows(sessions))
		},
	}
}

func (c *cli) sessionRows(sessions []api.Session) [][]string {
	rows := [][]string{{"SESSION", "NODE", "NETWORK", "STATE", "SINCE", "ADDRESSES", "ENDPOINT", "HANDSHAKE", "RX_BYTES", "TX_BYTES"}}
	for _, s := range sessions {
		handshake, state := "", s.State
		if s.Quarantined {
			state += " (quarantined)"
		}
		if s.LastHandshakeAt != nil {
			handshake = c.age(*s.LastHandshakeAt)
		}
		rows = append(rows, []string{
			s.Session, s.Node, s.Network, state, stamp(s.Since), list(s.Addresses), word(s.Endpoint), handshake,
			strconv.FormatUint(s.RxBytes, 10), strconv.FormatUint(s.TxBytes, 10),
		})
	}
	return rows
}
