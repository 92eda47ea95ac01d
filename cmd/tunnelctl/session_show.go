package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"tunneld/internal/api"
)

func newSessionShow(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "show ID",
		Short:             "one session and what happened to it",
		Long:              sessionShowUsage,
		Args:              wants("ID"),
		ValidArgsFunction: c.completeSessions,
		RunE: func(cmd *cobra.Command, args []string) error {
			detail, err := c.client().Session(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(detail)
			}
			return c.showSession(detail)
		},
	}
}

func (c *cli) showSession(d api.SessionDetail) error {
	fmt.Fprintf(c.out, "session %s\n", printable(d.Session.Session))
	if err := c.table(c.detailRows(d)); err != nil {
		return err
	}
	if len(d.History) > 0 {
		fmt.Fprintln(c.out, "\nstory")
	}
	for _, e := range d.History {
		fmt.Fprintf(c.out, "  %s  %s\n", e.Time.UTC().Format(timeFormat), told(e))
	}
	return nil
}

// verbs are the events of a session as its story has them.
var verbs = map[string]string{
	"session-established": "opened",
	"session-suspended":   "suspended",
	"session-resumed":     "resumed",
	"session-rekeyed":     "rekeyed",
	"session-closed":      "closed",
	"session-expiring":    "is about to end",
	"session-extended":    "extended",
	"session-changed":     "changed",
	"change-refused":      "not changed",
	"session-rebuilt":     "rebuilt",
	"routes-changed":      "has other routes",
	"session-held":        "held by suspend",
	"session-released":    "released by resume",
	"quarantine-lifted":   "let out of quarantine",
	"rekey-failed":        "not rekeyed",
}

// told is one line of a story.
func told(e api.Event) string {
	text := verbs[e.Event]
	if text == "" {
		text = printable(e.Event) // of a newer daemon
	}
	if e.From != nil {
		text += " from " + printable(*e.From)
	}
	if e.Cause != nil {
		text += ": " + printable(*e.Cause)
	}
	if e.RxBytes != nil && e.TxBytes != nil {
		text += fmt.Sprintf("; rx_bytes %d, tx_bytes %d", *e.RxBytes, *e.TxBytes)
	}
	if e.Request != nil {
		text += "  request " + printable(*e.Request)
	}
	return text
}

func (c *cli) detailRows(d api.SessionDetail) (rows [][]string) {
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{"  " + name, value})
		}
	}
	control := d.State
	if d.Since != nil {
		control += " since " + stamp(d.Since)
	}
	if d.Resumes > 0 {
		control += ", resumes " + strconv.FormatUint(d.Resumes, 10)
	}
	data := "no handshake known"
	if d.LastHandshakeAt != nil {
		data = "last handshake " + c.age(*d.LastHandshakeAt) + " at " + stamp(d.LastHandshakeAt)
	}
	if d.KeyEpoch != nil {
		data += ", key epoch " + strconv.FormatUint(uint64(*d.KeyEpoch), 10)
	}
	add("node", d.Node)
	add("user", word(d.User))
	add("network", d.Network)
	add("control", control)
	add("data", data)
	add("addresses", list(d.Addresses))
	add("advertises", list(d.Advertise))
	add("path", word(d.Path))
	add("endpoint", word(d.Endpoint))
	add("traffic", fmt.Sprintf("rx_bytes %d, tx_bytes %d", d.RxBytes, d.TxBytes))
	add("limits", limitsOf(d.Limits))
	add("dropped", dropsOf(d.RxDropped, d.TxDropped))
	if d.Quarantined {
		add("quarantined", "nothing passes; `tunnelctl session release` lets it out")
	}
	add("expires", stamp(d.ExpiresAt))
	add("lifetime", lifetimeOf(d.LifetimeMillis, d.Refresher, d.RefreshAt))
	add("serial", serialText(d.Serial))
	add("checkpoint", serialText(d.Checkpoint))
	return rows
}
