package host

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// echo answers each datagram with the address it came from.
func (s *space) echo(address string) net.PacketConn {
	s.t.Helper()
	s.enter()
	conn, err := net.ListenPacket("udp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 64)
		for {
			_, from, err := conn.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = conn.WriteTo([]byte(from.String()), from)
			}
		}
	}()
	s.t.Cleanup(func() { conn.Close(); <-done })
	return conn
}

// ask sends datagrams in s from a socket with the mark, half a second apart and
// not more than tries, until one is answered, and returns the address that the
// answer names.
func ask(s *space, address string, mark, tries int) (netip.AddrPort, error) {
	s.t.Helper()
	s.enter()
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	conn, err := d.Dial("udp", address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer conn.Close()
	b := make([]byte, 64)
	for range tries {
		if _, err = conn.Write([]byte("who am I?")); err != nil {
			continue
		}
		if err = conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			return netip.AddrPort{}, err
		}
		var n int
		if n, err = conn.Read(b); err == nil {
			return netip.ParseAddrPort(string(b[:n]))
		}
	}
	return netip.AddrPort{}, err
}

// TestMasquerade sends from a node behind the tunnel (a veth here) through the
// gateway to a server that has no route back.
//
//	node 10.77.0.2 ── tnl0 gateway eth0 192.0.2.1 ── eth0 192.0.2.9 server
func TestMasquerade(t *testing.T) {
	node, server, gateway := newSpace(t), newSpace(t), newSpace(t)
	gateway.veth("tnl0", node, "eth0")
	gateway.veth("eth0", server, "eth0")
	l := gateway.host()
	want(t, l.SetLink("tnl0", prefixes("10.77.0.1/16", "fd77::1/64"), 1420))
	gateway.run("ip addr add 192.0.2.1/24 dev eth0 && ip addr add 2001:db8::1/64 dev eth0 nodad && sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	node.run("ip addr add 10.77.0.2/16 dev eth0 && ip addr add fd77::2/64 dev eth0 nodad && ip route add default via 10.77.0.1 && ip -6 route add default via fd77::1")
	server.run("ip addr add 192.0.2.9/24 dev eth0 && ip addr add 2001:db8::9/64 dev eth0 nodad")
	server.echo("192.0.2.9:7")
	server.echo("[2001:db8::9]:7")

	want(t, l.SetMasquerade("tnl0", prefixes("10.77.0.0/16", "fd77::/64")))
	for _, tt := range []struct{ ask, want string }{
		{"192.0.2.9:7", "192.0.2.1"},
		{"[2001:db8::9]:7", "2001:db8::1"},
	} {
		got, err := ask(node, tt.ask, 0, 8)
		if err != nil || got.Addr() != netip.MustParseAddr(tt.want) {
			t.Errorf("%s sees %v, %v, want %s", tt.ask, got, err, tt.want)
		}
	}

	// The gateway's own packets into the tunnel and to itself keep their source.
	node.echo("10.77.0.2:7")
	if got, err := ask(gateway, "10.77.0.2:7", 0, 8); err != nil || got.Addr() != netip.MustParseAddr("10.77.0.1") {
		t.Errorf("into the tunnel: seen as %v, %v, want 10.77.0.1", got, err)
	}
	gateway.echo("10.77.0.1:7")
	if got, err := ask(gateway, "10.77.0.1:7", 0, 8); err != nil || got.Addr() != netip.MustParseAddr("10.77.0.1") {
		t.Errorf("to itself: seen as %v, %v, want 10.77.0.1", got, err)
	}

	// A new tenant of an address inherits no connection.
	if out := gateway.run("cat /proc/sys/net/netfilter/nf_conntrack_count"); out == "0\n" {
		t.Fatalf("no tracked connections before: %s", out)
	}
	want(t, l.FlushConntrack([]netip.Addr{netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("fd77::2"), netip.MustParseAddr("10.77.0.1")}))
	if out := gateway.run("cat /proc/sys/net/netfilter/nf_conntrack_count"); out != "0\n" {
		t.Errorf("%s tracked connections after, want 0", strings.TrimSpace(out))
	}

	want(t, l.SetMasquerade("tnl0", nil))
	if out := gateway.run("nft list ruleset"); out != "" {
		t.Errorf("left behind:\n%s", out)
	}
	if got, err := ask(node, "192.0.2.9:7", 0, 1); err == nil {
		t.Errorf("without masquerade the server answered %v, to which it has no route", got)
	}
}

func TestMasqueradeTable(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.tun("tnl0")
	s.tun("tnl1")
	s.run("nft add table inet other && nft add chain inet other c '{ type filter hook forward priority 0; }'")
	foreign := s.run("nft list ruleset")
	want(t, l.SetMasquerade("tnl0", prefixes("10.77.0.0/16")))
	want(t, l.SetMasquerade("tnl1", prefixes("10.88.0.0/16", "fd88::/64")))
	want(t, l.SetMasquerade("tnl0", prefixes("10.78.0.0/16")))
	out := s.run("nft list ruleset")
	wantLines(t, out,
		`ip saddr 10.78.0.0/16 oifname != "tnl0" oifname != "lo" masquerade comment "tnl0 10.78.0.0/16"`,
		`ip saddr 10.88.0.0/16 oifname != "tnl1" oifname != "lo" masquerade comment "tnl1 10.88.0.0/16"`,
		`ip6 saddr fd88::/64 oifname != "tnl1" oifname != "lo" masquerade comment "tnl1 fd88::/64"`)
	if strings.Contains(out, "10.77.0.0") {
		t.Errorf("what is not wanted any more stays:\n%s", out)
	}
	want(t, l.SetMasquerade("tnl0", nil))
	want(t, l.SetMasquerade("tnl1", nil))
	if out := s.run("nft list ruleset"); out != foreign {
		t.Errorf("left behind:\n%s\nwant\n%s", out, foreign)
	}
}

// TestCleanup finds what a killed process left: its TUN is gone, and with it
// addresses and routes; rules and filters are not.
func TestCleanup(t *testing.T) {
	s := newSpace(t)
	s.tun("tnl1")
	before := s.dump()
	killed := s.host()
	remove := s.tun("tnl0")
	want(t, killed.SetLink("tnl0", prefixes("10.77.0.2/32", "fd77::2/128"), 1420))
	want(t, killed.SetRoutes("tnl0", prefixes("0.0.0.0/0", "::/0", "10.77.0.0/16")))
	want(t, killed.SetMasquerade("tnl0", prefixes("10.77.0.0/16")))
	remove()
	s.waitGone("tnl0")
	wantLines(t, s.dump(), "lookup 5182", "table inet tunneld")

	l := s.host()
	want(t, l.Cleanup(""))
	if after := s.dump(); after != before {
		t.Errorf("after:\n%s\nwant as before:\n%s", after, before)
	}

	// What belongs to an interface that lives is left alone, until it is named.
	want(t, l.SetLink("tnl1", prefixes("10.88.0.2/32"), 1420))
	up := s.dump()
	want(t, l.SetRoutes("tnl1", prefixes("0.0.0.0/0")))
	want(t, l.SetMasquerade("tnl1", prefixes("10.88.0.0/16")))
	busy := s.dump()
	want(t, l.Cleanup(""))
	want(t, l.Cleanup("tnl7"))
	if after := s.dump(); after != busy {
		t.Errorf("after:\n%s\nwant as before:\n%s", after, busy)
	}
	want(t, l.Cleanup("tnl1"))
	if after := s.dump(); after != up {
		t.Errorf("after:\n%s\nwant as before:\n%s", after, up)
	}
}

func TestFlushConntrackOfNothing(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	want(t, l.FlushConntrack(nil))
	want(t, l.FlushConntrack([]netip.Addr{netip.MustParseAddr("10.77.0.2")}))
}
