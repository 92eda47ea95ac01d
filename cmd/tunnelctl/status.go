package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tunneld/internal/api"
)

func newStatus(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "status",
		Short:             "tunnels, networks, problems",
		Long:              statusUsage,
		Args:              wants(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := c.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(status)
			}
			return c.showStatus(status)
		},
	}
}

func (c *cli) showStatus(s api.Status) error {
	fmt.Fprintf(c.out, "node %s, boot %s, engine %s\n", printable(s.Node), printable(s.BootID), printable(s.Engine))
	c.showKeyMemory(s.KeyMemory)
	for _, t := range s.Tunnels {
		fmt.Fprintf(c.out, "\ntunnel %s\n", printable(t.Name))
		if err := c.table(c.tunnelRows(t)); err != nil {
			return err
		}
	}
	if len(s.Networks) > 0 {
		fmt.Fprintln(c.out)
		if err := c.table(networkRows(s.Networks)); err != nil {
			return err
		}
	}
	if d := s.Drain; d != nil {
		where := "other gateways of theirs"
		if len(d.To) > 0 {
			where = strings.Join(d.To, ", ")
		}
		fmt.Fprintf(c.out, "\ndraining since %s: nodes go to %s, %d sessions are left\n", stamp(&d.Since), printable(where), d.Sessions)
	}
	for _, p := range s.Problems {
		where := ""
		if p.Interface != "" {
			where = " on " + printable(p.Interface)
		}
		fmt.Fprintf(c.out, "\nproblem%s: %s\n  mended by: %s\n", where, printable(p.What), printable(p.Mend))
	}
	if len(s.Tunnels)+len(s.Networks) == 0 {
		c.hint("no tunnel yet: ask the gateway's administrator for an invite code and give it to `tunnelctl join -`")
	}
	return nil
}

// showKeyMemory tells whether live keys could reach a disk.
func (c *cli) showKeyMemory(k api.KeyMemory) {
	swap := "whether there is a swap is not known"
	if k.Swap != nil && *k.Swap {
		swap = "there is a swap"
	} else if k.Swap != nil {
		swap = "there is no swap"
	}
	if k.Locked {
		fmt.Fprintln(c.out, "keys locked in memory")
	} else {
		fmt.Fprintf(c.out, "keys not locked in memory (%s); %s\n", printable(word(k.Why)), swap)
	}
	if k.Mend != nil {
		fmt.Fprintf(c.out, "  mended by: %s\n", printable(*k.Mend))
	}
}

// tunnelRows are the lines about one tunnel, control and data apart; what is
// unknown or empty has no line.
func (c *cli) tunnelRows(t api.Tunnel) (rows [][]string) {
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{"  " + name, value})
		}
	}
	add("control", controlOf(t))
	add("data", c.dataOf(t))
	add("session", word(t.Session))
	add("addresses", list(t.Addresses))
	add("gateway", word(t.Gateway))
	add("path", word(t.Path))
	add("endpoint", word(t.Endpoint))
	add("interface", interfaceOf(t))
	add("traffic", fmt.Sprintf("rx_bytes %d, tx_bytes %d", t.RxBytes, t.TxBytes))
	add("routes", list(t.Routes))
	add("refused routes", list(t.RefusedRoutes))
	add("advertises", list(t.Advertise))
	add("expires", stamp(t.ExpiresAt))
	add("lifetime", lifetimeOf(t.LifetimeMillis, t.Refresher, t.RefreshAt))
	add("serial", serialText(t.Serial))
	add("leaves", leavingOf(t.Leaving))
	add("last error", word(t.LastError))
	return rows
}

func serialText(serial *uint64) string {
	if serial == nil {
		return ""
	}
	return strconv.FormatUint(*serial, 10)
}

// lifetimeOf tells of the lifetime that both ends agreed on.
func lifetimeOf(ms *int64, refresher *string, at *time.Time) string {
	if ms == nil {
		return ""
	}
	return fmt.Sprintf("%v, refreshed by the %s, next until %s", time.Duration(*ms)*time.Millisecond, word(refresher), stamp(at))
}

// leavingOf tells what is done about a gateway that is about to go.
func leavingOf(l *api.Leaving) string {
	switch {
	case l == nil:
		return ""
	case l.To == nil:
		return "no other gateway: waits for this one, which is about to go"
	}
	return "for " + *l.To + " at " + stamp(l.At)
}

// controlOf tells of the control connection: state, since when, resumes.
func controlOf(t api.Tunnel) string {
	text := t.State
	if t.Since != nil {
		text += " since " + stamp(t.Since)
	}
	if t.Resumes > 0 {
		text += ", resumes " + strconv.FormatUint(t.Resumes, 10)
	}
	if !t.Enabled {
		text += ", down until `tunnelctl up " + t.Name + "`"
	}
	if t.Held {
		text += ", held until `tunnelctl resume " + t.Name + "`"
	}
	return text
}

// dataOf tells of the data path, which lives by handshakes of its own.
func (c *cli) dataOf(t api.Tunnel) string {
	text := "unknown"
	if t.DataAlive != nil && *t.DataAlive {
		text = "alive"
	} else if t.DataAlive != nil {
		text = "silent"
	}
	if t.LastHandshakeAt != nil {
		text += ", last handshake " + c.age(*t.LastHandshakeAt) + " at " + stamp(t.LastHandshakeAt)
	}
	if t.KeyEpoch != nil {
		text += ", key epoch " + strconv.FormatUint(uint64(*t.KeyEpoch), 10)
	}
	return text
}

func interfaceOf(t api.Tunnel) string {
	text := word(t.Interface)
	if text != "" && t.MTU != nil {
		text += ", mtu " + strconv.Itoa(*t.MTU)
	}
	return text
}

func networkRows(networks []api.Network) [][]string {
	rows := [][]string{{"NETWORK", "INTERFACE", "POOLS", "ADDRESSES", "ROUTES", "LIMITS", "SESSIONS", "LEASED"}}
	for _, n := range networks {
		rows = append(rows, []string{
			n.Name, n.Interface, list(n.Pools), list(n.Addresses), list(n.Routes), limitsOf(n.Limits),
			strconv.Itoa(n.Sessions), strconv.Itoa(n.Leased),
		})
	}
	return rows
}
