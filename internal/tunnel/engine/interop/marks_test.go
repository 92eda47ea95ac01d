package interop

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// TestCongestionMarks marks packets outside, on the wire, and looks for the
// mark inside; nothing else of the traffic class is to show outside.
func TestCongestionMarks(t *testing.T) {
	t.Parallel()
	node, gateway := hosts(t, kinds{"native", "native"})
	pair(node, gateway, "tnl0", 1, "192.0.2.2:443")
	marks(t, node.host, gateway.host, "10.1.0.2", 443, "tnl0")
}

// testForeignMarks does so both ways with a foreign end that keeps marks, which
// wireguard-go does not.
func testForeignMarks(t *testing.T, far far) {
	f := meet(t, far, "native", 1420, func(s *Session) { s.Endpoint = farAddress })
	marks(t, f.ours.host, f.host, "10.1.0.2", farPort, f.dev)
	marks(t, f.host, f.ours.host, "10.1.0.1", f.port, "tnl0")
}

// marks sends packets that are capable of marks, and of some class, from a host
// through a tunnel that ends at an interface of the other.
func marks(t *testing.T, from, to host, addr string, port uint16, dev string) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Fatal("nft is missing: apt-get install -y --no-install-recommends nftables")
	}
	const n = 3
	if got := from.ping(addr, n, "-Q", "0x2"); got != n { // ECT(0)
		t.Fatalf("ping: %d answers, want %d", got, n)
	}
	from.run("nft", fmt.Sprintf("add table ip t; add chain ip t o { type filter hook output priority 0 ; }; add rule ip t o udp dport %d ip ecn ect0 counter ip ecn set ce; add rule ip t o udp dport %[1]d ip dscp != 0 counter drop", port))
	to.run("nft", fmt.Sprintf("add table ip t; add chain ip t i { type filter hook input priority 0 ; }; add rule ip t i iifname %s ip ecn ce counter", dev))
	if got := from.ping(addr, n, "-Q", "0xba"); got != n { // with a DSCP, which stays inside
		t.Errorf("ping with marks: %d answers, want %d", got, n)
	}
	if out := to.run("nft", "list table ip t"); !strings.Contains(out, fmt.Sprintf("ecn ce counter packets %d", n)) {
		t.Errorf("packets marked inside:\n%s\nwant %d", out, n)
	}
	// Outside they need not be three: what is sent at once is one packet there.
	if out := from.run("nft", "list table ip t"); strings.Contains(out, "ecn ect0 counter packets 0") {
		t.Errorf("packets capable of marks outside:\n%s\nwant some", out)
	}
	for _, h := range []host{from, to} {
		h.run("nft", "delete table ip t")
	}
}
