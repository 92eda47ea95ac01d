package e2e

import (
	"encoding/json"
	"net"
	"net/netip"
	"testing"

	"tunneld/internal/netlab"
)

// drops are those of a session in one direction that tests look at.
type drops struct{ Rate, Direction uint64 }

// bounded is what `session show` says of a session's limits.
type bounded struct {
	RxBytes   uint64 `json:"rx_bytes"`
	TxBytes   uint64 `json:"tx_bytes"`
	RateUp    uint64 `json:"rate_up"`
	RateDown  uint64 `json:"rate_down"`
	Direction string `json:"direction"`
	RxDropped drops  `json:"rx_dropped"`
	TxDropped drops  `json:"tx_dropped"`
}

func (w *world) bounded(d *netlab.Daemon, session string) (b bounded) {
	w.t.Helper()
	w.check(json.Unmarshal([]byte(w.ctl(d, "--json", "session", "show", session)), &b))
	return b
}

// flood sends datagrams of 1000 octets as fast as the host takes them.
func (w *world) flood(from string, to netip.Addr, n int) {
	w.t.Helper()
	address := "0.0.0.0:0"
	conn, err := w.net.Hosts[from].ListenUDP(address)
	w.check(err)
	defer conn.Close()
	block := make([]byte, 1000)
	for range n {
		conn.WriteToUDP(block, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9))) // what the host does not take is as good as dropped
	}
}

// TestRateLimit floods a session both ways: little passes, the rest is counted as
// beyond the rate, at the gateway and nowhere else, and the session lives.
func TestRateLimit(t *testing.T) {
	mixed(t, func(t *testing.T, e engines, short bool) {
		w := newStage(t, roadPlan)
		w.engines = e
		w.hq = w.gateway("hq", "rate_up = \"100kbit\"\nrate_down = \"1Mbit\"", officeInit...)
		alice := w.node("alice", "--rate-down", "100kbit")
		before, _ := w.established(alice)
		address := netip.MustParseAddr(before.Addresses[0])
		if b := w.bounded(w.hq, before.Session); b.RateUp != 100_000 || b.RateDown != 100_000 || b.Direction != "duplex" {
			t.Errorf("limits %+v, want 100kbit both ways, of the network and of the invite", b)
		}
		const packets = 4000 // 64 KiB and 12.5 kB a second pass of 4 MB
		w.flood("alice", server, packets)
		w.flood("server", address, packets)
		var b bounded
		w.eventually("drops both ways", func() bool {
			b = w.bounded(w.hq, before.Session)
			return b.RxDropped.Rate > 0 && b.TxDropped.Rate > 0
		})
		for way, c := range map[string]struct{ bytes, dropped uint64 }{"up": {b.RxBytes, b.RxDropped.Rate}, "down": {b.TxBytes, b.TxDropped.Rate}} {
			if passed := c.bytes / 1028; passed*2 > c.dropped {
				t.Errorf("%s: about %d datagrams passed and %d were dropped, want far fewer to pass", way, passed, c.dropped)
			}
		}
		if own := w.bounded(alice, before.Session); own.RxDropped.Rate+own.TxDropped.Rate != 0 || own.Direction != "" {
			t.Errorf("the node itself has %+v, want that it bounds nothing", own)
		}
		if short {
			return
		}
		w.reconfigured("rate_up = \"100kbit\"\nrate_down = \"1Mbit\"", "")
		after, _ := w.established(alice)
		w.same(before, after)
		if b := w.bounded(w.hq, before.Session); b.RateUp != 0 || b.RateDown != 100_000 {
			t.Errorf("limits %+v after the restart, want those of the invite alone", b)
		}
	})
}

// TestDirection shuts one way of a session that lives, and then the other: the
// gateway drops and counts, and the session stays up.
func TestDirection(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	p := w.probe("alice")
	before, _ := w.established(alice)

	w.reconfigured("\n[[network]]\n", "\n[[network]]\ndirection = \"down\"\n")
	w.established(alice)
	w.eventually("packets of the node that are dropped", func() bool { return w.bounded(w.hq, before.Session).RxDropped.Direction > 0 })
	w.silent(p)
	if b := w.bounded(w.hq, before.Session); b.Direction != "down" || b.TxDropped.Direction != 0 {
		t.Errorf("session show: %+v, want packets dropped that the node sent, and no others", b)
	}
	down := w.bounded(alice, before.Session).RxBytes
	w.flood("server", netip.MustParseAddr(before.Addresses[0]), 10)
	w.eventually("packets for the node that pass", func() bool { return w.bounded(alice, before.Session).RxBytes > down })

	w.reconfigured("direction = \"down\"", "direction = \"up\"")
	w.established(alice)
	up := w.bounded(w.hq, before.Session).RxBytes
	w.eventually("packets of the node that pass", func() bool { return w.bounded(w.hq, before.Session).RxBytes > up })
	w.eventually("answers to it that are dropped", func() bool { return w.bounded(w.hq, before.Session).TxDropped.Direction > 0 })
	w.silent(p)

	w.reconfigured("direction = \"up\"\n", "")
	w.answered(p)
	after, _ := w.established(alice)
	w.same(before, after)
}
