package e2e

import (
	"encoding/json"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tunneld/internal/netlab"
)

func TestRoadWarriorBehindNAT(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	w.ping("alice", server, server6, netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1"))

	tunnel, session := w.established(alice)
	pool4, pool6 := netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")
	var in4, in6 bool
	for _, a := range tunnel.Addresses {
		addr, err := netip.ParseAddr(a) // plain, without prefix length
		w.check(err)
		in4, in6 = in4 || pool4.Contains(addr), in6 || pool6.Contains(addr)
	}
	if len(tunnel.Addresses) != 2 || !in4 || !in6 || !slices.Equal(tunnel.Addresses, session.Addresses) {
		t.Errorf("addresses = %v at the node, %v at the gateway, want one of each pool", tunnel.Addresses, session.Addresses)
	}
	if tunnel.Interface != "tnl0" || tunnel.MTU != 1420 || tunnel.Endpoint != "203.0.113.1:443" {
		t.Errorf("tunnel = %+v, want tnl0, MTU 1420, endpoint 203.0.113.1:443", tunnel)
	}
	endpoint, err := netip.ParseAddrPort(session.Endpoint)
	if err != nil || endpoint.Addr() != netip.MustParseAddr("198.51.100.2") {
		t.Errorf("endpoint = %q at the gateway, want one of the NAT's outside, 198.51.100.2", session.Endpoint)
	}
	if session.Node != "alice" || session.Network != office {
		t.Errorf("session = %+v, want node alice and network office", session)
	}
}

func TestIPv6Outside(t *testing.T) {
	w := newOffice(t, `
		alice.eth0 2001:db8:a::2/64 -- inet.alice 2001:db8:a::1/64
		hq.eth0 2001:db8:1::1/64 -- inet.hq 2001:db8:1::ff/64
		hq.lan 10.50.0.1/24 fd50::1/64 -- server.eth0 10.50.0.10/24 fd50::10/64
		alice default 2001:db8:a::1
		hq default 2001:db8:1::ff
		server default 10.50.0.1
		server default fd50::1
		hq forwards
		inet forwards
	`, append([]string{"--name", "hq", "--public", "[2001:db8:1::1]:443"}, officeInit[4:]...)...)
	alice := w.node("alice")
	w.ping("alice", server, server6)
	if tunnel, _ := w.established(alice); tunnel.Endpoint != "[2001:db8:1::1]:443" {
		t.Errorf("endpoint = %q, want [2001:db8:1::1]:443", tunnel.Endpoint)
	}
}

func TestSiteToSite(t *testing.T) {
	w := newOffice(t, roadPlan+branchPlan)
	branch := w.node("branch", "--advertise", "10.20.0.0/24", "--advertise", "fd20::/64")
	w.ping("desk", server, server6)
	w.ping("server", desk, desk6)

	w.node("alice") // another node of the network reaches what a branch advertises
	w.ping("alice", desk, desk6)
	w.ping("desk", netip.MustParseAddr("10.77.0.1"))

	// Both keep what they have when the branch's daemon starts anew.
	before, _ := w.established(branch)
	w.check(branch.Process().Kill9())
	w.start(branch)
	after, _ := w.established(branch)
	w.same(before, after)
	w.ping("server", desk, desk6)
	w.ping("alice", desk)
}

func TestPrefixBeyondTheInvite(t *testing.T) {
	w := newOffice(t, gatewayPlan+branchPlan)
	branch := w.node("branch", "--advertise", "10.20.0.0/24")
	editTunnel(w, branch, `"10.20.0.0/24"`, `"10.50.0.0/24"`) // the server's own network
	w.check(branch.Process().Stop())
	before := w.ctl(w.hq, "--json", "sessions")
	w.check(branch.Start())
	w.check(branch.WaitReady(w.patience()))
	w.ctl(branch, "down", office)
	exit := w.refused(branch, 5, "up", office)
	if !strings.Contains(exit.Stderr, "10.50.0.0/24") {
		t.Errorf("up says %q, want the prefix named; sessions before: %s", exit.Stderr, before)
	}
	w.ping("hq", server) // goes where it went
}

// editTunnel changes the file that join wrote; the daemon reads it at its next
// start.
func editTunnel(w *world, d *netlab.Daemon, old, new string) {
	w.t.Helper()
	file := filepath.Join(d.Dir(), "state", "tunnels", office+".toml")
	b, err := os.ReadFile(file)
	w.check(err)
	if !strings.Contains(string(b), old) {
		w.t.Fatalf("%s has no %q:\n%s", file, old, b)
	}
	w.check(os.WriteFile(file, []byte(strings.Replace(string(b), old, new, 1)), 0o600))
}

// TestDefaultRoutes sends everything through the tunnel but the tunnel's own
// packets.
func TestDefaultRoutes(t *testing.T) {
	w := newStage(t, `
		alice.eth0 192.0.2.2/24 2001:db8:a::2/64 -- inet.alice 192.0.2.1/24 2001:db8:a::1/64
		hq.eth0 203.0.113.1/24 2001:db8:1::1/64 -- inet.hq 203.0.113.254/24 2001:db8:1::ff/64
		server.eth0 198.51.100.9/24 2001:db8:9::9/64 -- inet.server 198.51.100.1/24 2001:db8:9::1/64
		alice default 192.0.2.1
		alice default 2001:db8:a::1
		hq default 203.0.113.254
		hq default 2001:db8:1::ff
		server default 198.51.100.1
		server default 2001:db8:9::1
		hq forwards
		inet forwards
	`)
	w.hq = w.gateway("hq", "masquerade = true", "--name", "hq", "--public", "203.0.113.1:443",
		"--network", "office=10.77.0.0/16,fd77::/64", "--route", "office=0.0.0.0/0", "--route", "office=::/0")
	alice := w.node("alice")
	before := w.sourceAt(t, "198.51.100.9:9", "alice")
	if before != "192.0.2.2" {
		t.Fatalf("without asking for it alice's packets come from %s, want her own 192.0.2.2", before)
	}
	editTunnel(w, alice, "accept_routes = [", `accept_routes = ["0.0.0.0/0", "::/0", `)
	w.check(alice.Process().Stop())
	w.start(alice)
	w.ctl(alice, "up", office)
	if got := w.sourceAt(t, "198.51.100.9:9", "alice"); got != "203.0.113.1" {
		t.Errorf("alice's IPv4 comes from %s, want the gateway's 203.0.113.1", got)
	}
	if got := w.sourceAt(t, "[2001:db8:9::9]:9", "alice"); got != "2001:db8:1::1" {
		t.Errorf("alice's IPv6 comes from %s, want the gateway's 2001:db8:1::1", got)
	}
	w.ping("alice", netip.MustParseAddr("192.0.2.1")) // her own network stays her own

	w.check(alice.Process().Stop())
	if got := w.sourceAt(t, "198.51.100.9:9", "alice"); got != "192.0.2.2" {
		t.Errorf("without a daemon alice's packets come from %s, want her own 192.0.2.2", got)
	}
}

// sourceAt says from which address a host's packets reach the server.
func (w *world) sourceAt(t *testing.T, at, from string) string {
	t.Helper()
	in, err := w.net.Hosts["server"].ListenUDP(at)
	w.check(err)
	defer in.Close()
	to := netip.MustParseAddrPort(at)
	probe, err := w.net.Hosts[from].Probe(to, 20*time.Millisecond)
	w.check(err)
	defer probe.Close()
	in.SetReadDeadline(time.Now().Add(patient))
	_, source, err := in.ReadFromUDP(make([]byte, 100))
	w.check(err)
	addr, _ := netip.AddrFromSlice(source.IP)
	return addr.Unmap().String()
}

// TestMasquerade reaches a server that has no way back to the pool.
func TestMasquerade(t *testing.T) {
	w := newStage(t, `
		alice.eth0 203.0.113.2/24 -- hq.eth0 203.0.113.1/24
		hq.lan 10.50.0.1/24 fd50::1/64 -- server.eth0 10.50.0.10/24 fd50::10/64
		hq forwards
	`)
	w.hq = w.gateway("hq", "masquerade = true", officeInit...)
	w.node("alice")
	w.ping("alice", server, server6)
	if got := w.sourceAt(t, "10.50.0.10:9", "alice"); got != "10.50.0.1" {
		t.Errorf("the server sees %s, want the gateway's 10.50.0.1", got)
	}
}

func TestForwardingOffIsSaid(t *testing.T) {
	w := newStage(t, strings.ReplaceAll(gatewayPlan, "hq forwards", ""))
	w.hq = w.gateway("hq", "", officeInit...)
	if got := w.ctl(w.hq, "status"); !strings.Contains(got, "net.ipv4.ip_forward=1") {
		t.Errorf("status = %q, want the command that turns forwarding on", got)
	}
	w.check(w.net.Hosts["hq"].Forward(true))
	err := netlab.Poll(w.patience(), 50*time.Millisecond, func() (bool, error) {
		return !strings.Contains(w.ctl(w.hq, "status"), "ip_forward"), nil
	})
	w.check(err)
}

func TestTwoTunnelsOfOneDaemon(t *testing.T) {
	w := newOffice(t, gatewayPlan+`
		alice.eth0 192.0.2.2/24 -- inet.alice 192.0.2.1/24
		lab.eth0 198.51.100.2/24 -- inet.lab 198.51.100.1/24
		alice default 192.0.2.1
		lab default 198.51.100.1
	`)
	lab := w.gateway("lab", "", "--name", "lab", "--public", "198.51.100.2:443", "--network", "lab=10.88.0.0/16,fd88::/64")
	alice := w.node("alice")
	w.join(lab, alice, "alice")
	w.ctl(alice, "up", "lab")
	w.ping("alice", server, server6, netip.MustParseAddr("10.88.0.1"), netip.MustParseAddr("fd88::1"))

	status, err := alice.Status(w.patience())
	w.check(err)
	first, second := status.Tunnel(office), status.Tunnel("lab")
	if len(status.Tunnels) != 2 || first.Interface == second.Interface || first.Session == second.Session {
		t.Errorf("status = %+v, want two tunnels with interfaces and sessions of their own", status)
	}
	w.ctl(alice, "down", "lab") // the other one does not notice
	w.ping("alice", server)
	after, _ := w.established(alice)
	w.same(first, after)
}

// TestBothRolesInOneDaemon has a gateway that dials another one.
func TestBothRolesInOneDaemon(t *testing.T) {
	w := newOffice(t, roadPlan+`
		lab.eth0 192.0.2.2/24 -- inet.lab 192.0.2.1/24
		lab default 192.0.2.1
	`)
	lab := w.gateway("lab", "", "--name", "lab", "--public", "192.0.2.2:443", "--network", "lab=10.88.0.0/16")
	w.join(lab, w.hq, "hq")
	w.ctl(w.hq, "up", "lab")
	w.node("alice")
	w.ping("alice", server)
	w.ping("hq", netip.MustParseAddr("10.88.0.1"))

	status, err := w.hq.Status(w.patience())
	w.check(err)
	sessions, err := w.hq.Sessions(w.patience())
	w.check(err)
	if status.Tunnel("lab").State != netlab.Established || len(sessions) != 1 || sessions[0].Node != "alice" {
		t.Errorf("hq dials %+v and serves %+v, want lab established, and alice", status.Tunnels, sessions)
	}
}

// TestSetUpOnABadWire enrols and opens a session over a path that loses,
// reorders and doubles packets.
func TestSetUpOnABadWire(t *testing.T) {
	w := newOffice(t, roadPlan)
	w.net.Wires["nat.wan"].Set(netlab.Impairment{
		Delay: 10 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.05, Reorder: 0.2, Duplicate: 0.1,
	})
	alice := w.node("alice")
	w.ping("alice", server, server6)
	for range 3 {
		before, _ := w.established(alice)
		w.ctl(alice, "down", office)
		w.ctl(alice, "up", office)
		after, _ := w.established(alice)
		w.renewed(before, after)
	}
	w.ping("alice", server)
}

// TestJSONKeys compares what --json prints with the keys that scripts rely on.
// There may be more; none may be missing, and no list may be null.
func TestJSONKeys(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	w.ping("alice", server)
	w.established(alice)
	var status map[string]any
	w.check(alice.JSON(w.patience(), &status, "status"))
	wantKeys(t, "status", status, "node boot_id tunnels")
	tunnels, _ := status["tunnels"].([]any)
	if len(tunnels) != 1 {
		t.Fatalf("tunnels = %v, want one", status["tunnels"])
	}
	wantKeys(t, "tunnel", tunnels[0], "name state session addresses gateway path endpoint interface mtu key_epoch resumes last_handshake_at rx_bytes tx_bytes since")
	var sessions []any
	w.check(w.hq.JSON(w.patience(), &sessions, "sessions"))
	if len(sessions) != 1 {
		t.Fatalf("sessions = %v, want one", sessions)
	}
	wantKeys(t, "session", sessions[0], "session node user network state addresses path endpoint key_epoch resumes last_handshake_at rx_bytes tx_bytes since expires_at")
	for line := range strings.Lines(w.ctl(w.hq, "--json", "events")) {
		var event map[string]any
		w.check(json.Unmarshal([]byte(line), &event))
		wantKeys(t, "event", event, "time event session node network cause request from rx_bytes tx_bytes")
	}
	tunnel := tunnels[0].(map[string]any)
	for _, key := range []string{"rx_bytes", "tx_bytes"} {
		if n, _ := tunnel[key].(float64); n <= 0 {
			t.Errorf("%s = %v after a ping, want more than 0", key, tunnel[key])
		}
	}
	for _, key := range []string{"since", "last_handshake_at"} {
		s, _ := tunnel[key].(string)
		if _, err := time.Parse(time.RFC3339, s); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	if host, _, err := net.SplitHostPort(tunnel["gateway"].(string)); err != nil || host != "203.0.113.1" {
		t.Errorf("gateway = %v, want 203.0.113.1:443", tunnel["gateway"])
	}
}

func wantKeys(t *testing.T, what string, object any, keys string) {
	t.Helper()
	m, _ := object.(map[string]any)
	for _, key := range strings.Fields(keys) {
		v, ok := m[key]
		if !ok {
			t.Errorf("%s has no %q, only %v", what, key, slices.Sorted(maps.Keys(m)))
		}
		if _, isList := v.([]any); (key == "addresses" || key == "tunnels") && !isList {
			t.Errorf("%s: %q is %v, want a list", what, key, v)
		}
	}
}
