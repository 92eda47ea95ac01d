package host

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestSetLink(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.tun("tnl0")
	steps := []struct {
		name      string
		addresses []netip.Prefix
		mtu       int
		want      []string // "FAMILY ADDRESS" of ip -o addr
	}{
		{"both families", prefixes("10.77.0.1/16", "fd77::1/64"), 1420, []string{"inet 10.77.0.1/16", "inet6 fd77::1/64"}},
		{"the same again", prefixes("10.77.0.1/16", "fd77::1/64"), 1420, []string{"inet 10.77.0.1/16", "inet6 fd77::1/64"}},
		{"another prefix length", prefixes("10.77.0.1/24", "fd77::1/64"), 1400, []string{"inet 10.77.0.1/24", "inet6 fd77::1/64"}},
		{"two of one network", prefixes("10.77.0.1/24", "10.77.0.2/24"), 1400, []string{"inet 10.77.0.1/24", "inet 10.77.0.2/24"}},
		{"the primary goes, the secondary stays", prefixes("10.77.0.2/24"), 1400, []string{"inet 10.77.0.2/24"}},
		{"none", nil, 1400, nil},
	}
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			want(t, l.SetLink("tnl0", step.addresses, step.mtu))
		})
		out := s.run("ip -o addr show dev tnl0")
		if n := strings.Count(out, "\n"); n != len(step.want) {
			t.Errorf("%s: %d addresses, want %d:\n%s", step.name, n, len(step.want), out)
		}
		wantLines(t, out, step.want...)
		if strings.Contains(out, "tentative") {
			t.Errorf("%s: duplicate detection runs:\n%s", step.name, out)
		}
	}
	wantLines(t, s.run("ip -d link show dev tnl0"), "<POINTOPOINT,MULTICAST,NOARP,UP,LOWER_UP> mtu 1400", "addrgenmode none")
	if got := s.run("sysctl -n net.ipv6.conf.tnl0.accept_ra"); got != "0\n" {
		t.Errorf("accept_ra = %q, want 0", got)
	}
}

func TestSetLinkKeepsLinkLocal(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.tun("tnl0")
	s.run("ip link set tnl0 addrgenmode none up && ip addr add fe80::7/64 dev tnl0 nodad && ip addr add 10.9.9.9/24 dev tnl0")
	want(t, l.SetLink("tnl0", prefixes("fd77::1/128"), 1420))
	out := s.run("ip -o addr show dev tnl0")
	wantLines(t, out, "inet6 fe80::7/64", "inet6 fd77::1/128")
	if strings.Contains(out, "10.9.9.9") {
		t.Errorf("a foreign address stays:\n%s", out)
	}
}

func TestSetLinkChangesNothingTwice(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.tun("tnl0")
	addresses := prefixes("10.77.0.2/32", "fd77::2/128")
	want(t, l.SetLink("tnl0", addresses, 1420))
	want(t, l.SetRoutes("tnl0", prefixes("10.77.0.0/16", "fd77::/64", "0.0.0.0/0", "::/0")))
	want(t, l.SetMasquerade("tnl0", prefixes("10.77.0.0/16")))
	mon, stop := s.monitor()
	want(t, l.SetLink("tnl0", addresses, 1420))
	want(t, l.SetRoutes("tnl0", prefixes("10.77.0.0/16", "fd77::/64", "0.0.0.0/0", "::/0")))
	want(t, l.SetMasquerade("tnl0", prefixes("10.77.0.0/16")))
	s.run("ip addr add 192.0.2.77/32 dev lo") // the end mark
	for line := range mon {
		if strings.Contains(line, "192.0.2.77") {
			break
		}
		t.Errorf("said again, it changed: %s", line)
	}
	stop()
}

func TestSetLinkErrors(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.tun("tnl0")
	if err := l.SetLink("tnl9", prefixes("10.77.0.1/16"), 1420); !errors.Is(err, ErrNoInterface) || !strings.Contains(err.Error(), `"tnl9"`) {
		t.Errorf("no such interface: err = %v, want ErrNoInterface with its name", err)
	}
	if err := l.SetLink("tnl0", nil, 10); err == nil || !strings.Contains(err.Error(), "tnl0: mtu 10") {
		t.Errorf("mtu 10: err = %v, want the interface and the value", err)
	}
	s.run("sysctl -w net.ipv6.conf.all.disable_ipv6=1")
	err := l.SetLink("tnl0", prefixes("10.77.0.1/16", "fd77::1/64"), 1420)
	if err == nil || !strings.Contains(err.Error(), "sysctl -w net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.tnl0.disable_ipv6=0") {
		t.Fatalf("IPv6 disabled: err = %v, want the command that mends it", err)
	}
	if out := s.run("ip -o addr show dev tnl0"); out != "" {
		t.Errorf("refused, yet changed:\n%s", out)
	}
	want(t, l.SetLink("tnl0", prefixes("10.77.0.1/16"), 1420)) // IPv4 alone needs no IPv6
	s.run("sysctl -w net.ipv6.conf.default.disable_ipv6=0 net.ipv6.conf.tnl0.disable_ipv6=0")
	want(t, l.SetLink("tnl0", prefixes("10.77.0.1/16", "fd77::1/64"), 1420))
}

func TestSetLinkLoosensStrictReversePath(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.run("sysctl -w net.ipv4.conf.all.rp_filter=1")
	s.tun("tnl0")
	want(t, l.SetLink("tnl0", prefixes("10.77.0.1/16"), 1420))
	if got := s.run("sysctl -n net.ipv4.conf.tnl0.rp_filter"); got != "2\n" {
		t.Errorf("rp_filter = %q, want 2", got)
	}
}

func TestSetLinkRestoresRoutes(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.tun("tnl0")
	want(t, l.SetLink("tnl0", prefixes("10.77.0.2/32"), 1420))
	want(t, l.SetRoutes("tnl0", prefixes("10.20.0.0/16")))
	want(t, l.SetLink("tnl0", prefixes("10.77.0.3/32"), 1420)) // the kernel drops routes with their source
	wantLines(t, s.run("ip -N route"), "10.20.0.0/16 dev tnl0 proto 99 scope 253 src 10.77.0.3 metric 50")
}

func TestFreeInterface(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.tun("tnl0")
	s.tun("tnl2")
	tests := []struct {
		prefix string
		taken  []string
		want   string
	}{
		{"tnl", nil, "tnl1"},
		{"tnl", []string{"tnl1"}, "tnl3"},
		{"net", nil, "net0"},
	}
	for _, tt := range tests {
		taken := func(name string) bool {
			for _, n := range tt.taken {
				if n == name {
					return true
				}
			}
			return false
		}
		got, err := l.FreeInterface(tt.prefix, taken)
		if err != nil || got != tt.want {
			t.Errorf("FreeInterface(%q, %v) = %q, %v, want %q", tt.prefix, tt.taken, got, err, tt.want)
		}
	}
	if got, err := l.FreeInterface("longer-than-names", nil); err == nil {
		t.Errorf("FreeInterface of a name that is too long = %q, want an error", got)
	}
}
