package host

import (
	"net/netip"
	"testing"
)

func TestOverlap(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.cable()
	s.run(`ip addr add 192.168.1.2/24 dev eth0 && ip addr add 2001:db8:1::2/64 dev eth0 nodad &&
		ip route add default via 192.168.1.1 && ip -6 route add default via 2001:db8:1::1 &&
		ip route add 0.0.0.0/1 via 192.168.1.1 && ip route add 128.0.0.0/1 via 192.168.1.1 &&
		ip route add 10.1.0.0/16 via 192.168.1.1 && ip -6 route add fd01::/48 via 2001:db8:1::1 && ip route add unreachable 10.66.0.0/16 &&
		ip route add 10.5.0.0/16 nexthop via 192.168.1.8 nexthop via 192.168.1.9 &&
		ip route add 10.9.0.0/16 via 192.168.1.1 table 100`)
	s.tun("tnl0")
	want(t, l.SetLink("tnl0", prefixes("10.77.0.1/16"), 1420))
	want(t, l.SetRoutes("tnl0", prefixes("10.20.0.0/16", "0.0.0.0/0")))
	s.tun("tnl1")
	want(t, l.SetLink("tnl1", nil, 1420))
	want(t, l.SetRoutes("tnl1", prefixes("10.30.0.0/16")))
	skip := func(ifname string) bool { return ifname == "tnl0" }
	tests := []struct {
		p      string
		skip   func(string) bool
		found  string // empty: none
		ifname string
	}{
		{"192.168.1.128/25", skip, "192.168.1.2/24", "eth0"},
		{"192.168.0.0/16", skip, "192.168.1.2/24", "eth0"},
		{"192.168.2.0/24", skip, "", ""},
		{"10.1.2.0/24", skip, "10.1.0.0/16", "eth0"},
		{"10.5.2.0/24", skip, "10.5.0.0/16", "eth0"},
		{"10.66.1.0/24", skip, "10.66.0.0/16", ""},
		{"10.9.0.0/16", skip, "", ""},
		{"10.77.0.0/16", nil, "10.77.0.1/16", "tnl0"},
		{"10.77.0.0/16", skip, "", ""},
		{"10.20.0.0/16", nil, "", ""}, // a route of ours
		{"10.30.0.0/16", skip, "", ""},
		{"fd01:0:0:7::/64", skip, "fd01::/48", "eth0"},
		{"2001:db8::/32", skip, "2001:db8:1::2/64", "eth0"},
		{"fd77::/64", skip, "", ""},
		{"127.0.0.0/24", skip, "127.0.0.1/8", "lo"},
	}
	for _, tt := range tests {
		found, ifname, ok, err := l.Overlap(netip.MustParsePrefix(tt.p), tt.skip)
		if err != nil {
			t.Errorf("Overlap(%s): %v", tt.p, err)
			continue
		}
		if ok != (tt.found != "") || ok && found.String() != tt.found || ifname != tt.ifname {
			t.Errorf("Overlap(%s) = %v, %q, %v, want %q, %q", tt.p, found, ifname, ok, tt.found, tt.ifname)
		}
	}
}
