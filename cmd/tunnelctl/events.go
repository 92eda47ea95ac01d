package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"tunneld/internal/api"
)

// timeFormat is RFC 3339 with milliseconds: several events fall into a second.
const timeFormat = "2006-01-02T15:04:05.000Z07:00"

func newEvents(c *cli) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:               "events",
		Short:             "what happened, and what happens",
		Long:              eventsUsage,
		Args:              wants(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.client().Events(cmd.Context(), follow, c.showEvent)
		},
	}
	cmd.Flags().BoolVar(&follow, "follow", false, "go on with each event that happens")
	return cmd
}

// showEvent prints one event on one line, at once: its reader may be waiting.
func (c *cli) showEvent(e api.Event) error {
	if c.json {
		enc := json.NewEncoder(c.out)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(e); err != nil {
			return err
		}
		return c.out.Flush()
	}
	fmt.Fprintf(c.out, "%s %s", e.Time.UTC().Format(timeFormat), printable(e.Event))
	for _, attr := range []struct {
		name  string
		value *string
	}{{"session", e.Session}, {"node", e.Node}, {"network", e.Network}, {"cause", e.Cause}, {"from", e.From}, {"request", e.Request}} {
		if attr.value != nil {
			fmt.Fprintf(c.out, " %s=%s", attr.name, quoted(*attr.value))
		}
	}
	fmt.Fprintln(c.out)
	return c.out.Flush()
}
