package host

import (
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// monitor tells what "ip monitor" and "nft monitor" see of s from now on.
func (s *space) monitor() (lines <-chan string, stop func()) {
	s.t.Helper()
	l := s.host()
	w, err := l.newWatcher(1 << 20)
	if err != nil {
		s.t.Fatal(err)
	}
	gen := strings.TrimSpace(s.run("nft -a list ruleset"))
	out := make(chan string)
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(out)
		for {
			msgs, _, err := w.sock.Receive()
			if err != nil {
				return
			}
			for _, m := range msgs {
				select {
				case out <- describe(m):
				case <-done:
					return
				}
			}
		}
	}()
	return out, func() {
		close(done)
		w.sock.Close()
		<-ended
		if now := strings.TrimSpace(s.run("nft -a list ruleset")); now != gen {
			s.t.Errorf("the packet filter changed from:\n%s\nto:\n%s", gen, now)
		}
	}
}

// describe shows a message of the kernel: its type and the addresses in it.
func describe(m syscall.NetlinkMessage) string {
	name := map[uint16]string{
		unix.RTM_NEWLINK: "link", unix.RTM_DELLINK: "link gone",
		unix.RTM_NEWADDR: "address", unix.RTM_DELADDR: "address gone",
		unix.RTM_NEWROUTE: "route", unix.RTM_DELROUTE: "route gone",
	}[m.Header.Type]
	for i := range len(m.Data) - 3 {
		if m.Data[i] == 192 && m.Data[i+1] == 0 && m.Data[i+2] == 2 {
			name += " " + net.IP(m.Data[i:i+4]).String()
		}
	}
	return name
}

func TestSetRoutes(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.tun("tnl0")
	want(t, l.SetLink("tnl0", prefixes("10.77.0.2/32", "fd77::2/128"), 1420))
	before := s.dump()

	want(t, l.SetRoutes("tnl0", prefixes("10.77.0.0/16", "10.20.0.0/16", "fd77::/64")))
	wantLines(t, s.run("ip -N route"),
		"10.77.0.0/16 dev tnl0 proto 99 scope 253 src 10.77.0.2 metric 50",
		"10.20.0.0/16 dev tnl0 proto 99 scope 253 src 10.77.0.2 metric 50")
	wantLines(t, s.run("ip -6 -N route"), "fd77::/64 dev tnl0 proto 99 src fd77::2 metric 50")
	if out := s.run("ip rule; ip -6 rule"); strings.Contains(out, "518") {
		t.Errorf("rules without a default route:\n%s", out)
	}

	want(t, l.SetRoutes("tnl0", prefixes("10.20.0.0/16", "10.30.1.7/24"))) // host bits do not matter
	out := s.run("ip -N route; ip -6 -N route")
	wantLines(t, out, "10.20.0.0/16 dev tnl0 proto 99", "10.30.1.0/24 dev tnl0 proto 99")
	if strings.Contains(out, "10.77.0.0/16") || strings.Contains(out, "fd77::/64") {
		t.Errorf("routes that are not wanted any more stay:\n%s", out)
	}

	want(t, l.SetRoutes("tnl0", nil))
	if after := s.dump(); after != before {
		t.Errorf("after:\n%s\nwant as before:\n%s", after, before)
	}
}

func TestDefaultRoute(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.cable()
	s.run(`ip addr add 192.0.2.2/24 dev eth0 && ip addr add 2001:db8::2/64 dev eth0 nodad &&
		ip route add default via 192.0.2.1 && ip route add 198.51.100.0/24 via 192.0.2.9 && ip -6 route add default via 2001:db8::1`)
	removeTun0 := s.tun("tnl0")
	want(t, l.SetLink("tnl0", prefixes("10.77.0.2/32", "fd77::2/128"), 1420))
	s.tun("tnl1")
	want(t, l.SetLink("tnl1", prefixes("10.88.0.2/32", "fd88::2/128"), 1420))
	before := s.dump()

	want(t, l.SetRoutes("tnl0", prefixes("0.0.0.0/0", "::/0", "10.77.0.0/16")))
	want(t, l.SetRoutes("tnl1", prefixes("10.88.0.0/16")))
	for _, tt := range []struct{ get, want string }{
		{"203.0.113.5", "dev tnl0 table 5182 src 10.77.0.2"},
		{"203.0.113.5 mark 0x746e", "via 192.0.2.1 dev eth0 src 192.0.2.2"},
		{"192.0.2.7", "dev eth0 src 192.0.2.2"},
		{"198.51.100.7", "via 192.0.2.9 dev eth0"},
		{"10.88.0.1", "dev tnl1 src 10.88.0.2"},
		{"2001:db8:1::5", "dev tnl0 table 5182 proto 99 src fd77::2"},
		{"2001:db8:1::5 mark 0x746e", "via 2001:db8::1 dev eth0 src 2001:db8::2"},
		{"2001:db8::7", "dev eth0"},
	} {
		wantLines(t, s.run("ip -N route get "+tt.get), tt.want)
	}
	rules := []string{"5180: from all lookup 254 suppress_prefixlength 0 proto 99", "5181: not from all fwmark 0x746e lookup 5182 proto 99"}
	for _, command := range []string{"ip -N rule", "ip -6 -N rule"} {
		out := s.run(command)
		wantLines(t, out, rules...)
		if n := strings.Count(out, "518"); n != 3 {
			t.Errorf("%s mentions ours %d times, want 3:\n%s", command, n, out)
		}
	}

	// One wins, whole: the other's list is refused, and nothing of it is done.
	err := l.SetRoutes("tnl1", prefixes("10.88.0.0/16", "10.99.0.0/16", "0.0.0.0/0"))
	if err == nil || !strings.Contains(err.Error(), "tnl1: route 0.0.0.0/0 goes through tnl0 already") {
		t.Fatalf("second default: err = %v, want both interfaces and the prefix", err)
	}
	if out := s.run("ip -N route"); strings.Contains(out, "10.99") {
		t.Errorf("refused, yet changed:\n%s", out)
	}

	// Another family of another tunnel keeps its own rules.
	want(t, l.SetRoutes("tnl0", prefixes("0.0.0.0/0")))
	want(t, l.SetRoutes("tnl1", prefixes("::/0")))
	want(t, l.SetRoutes("tnl0", nil))
	if out := s.run("ip rule"); strings.Contains(out, "518") {
		t.Errorf("IPv4 rules outlive the last IPv4 default route:\n%s", out)
	}
	wantLines(t, s.run("ip route get 2001:db8:1::5"), "dev tnl1")
	want(t, l.SetRoutes("tnl1", nil))
	if after := s.dump(); after != before {
		t.Errorf("after:\n%s\nwant as before:\n%s", after, before)
	}

	// An interface that is gone took its routes along, not the rules.
	want(t, l.SetRoutes("tnl0", prefixes("0.0.0.0/0")))
	removeTun0()
	s.waitGone("tnl0")
	if err := l.SetRoutes("tnl0", prefixes("0.0.0.0/0")); err == nil {
		t.Error("SetRoutes on a missing interface: no error")
	}
	want(t, l.SetRoutes("tnl0", nil))
	if out := s.run("ip rule; nft list ruleset"); strings.Contains(out, "518") || strings.Contains(out, "tunneld") {
		t.Errorf("left behind:\n%s", out)
	}
}

// waitGone waits until an interface is gone: closing a TUN starts that.
func (s *space) waitGone(ifname string) {
	s.t.Helper()
	s.enter()
	cmd := exec.Command("timeout", "20", "sh", "-c", "while [ -e /proc/sys/net/ipv4/conf/"+ifname+" ]; do sleep 0.01; done")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%s is still there: %v %s", ifname, err, out)
	}
}

func TestRouteConflicts(t *testing.T) {
	tests := []struct {
		name, setup string
		route       string
		want        string // in the error; empty: none
	}{
		{"a cable's network", "ip addr add 10.20.0.1/16 dev eth0", "10.20.0.0/16", "goes through eth0 already, which is a route of this host"},
		{"a cable's network with a high metric", "ip addr add 10.20.0.1/16 dev eth0 metric 600", "10.20.0.0/16", "goes through eth0 already"},
		{"a static route that would win", "ip addr add 192.0.2.2/24 dev eth0 && ip route add 10.20.0.0/16 via 192.0.2.1", "10.20.0.0/16", "goes through eth0 already"},
		{"a static route as backup", "ip addr add 192.0.2.2/24 dev eth0 && ip route add 10.20.0.0/16 via 192.0.2.1 metric 600", "10.20.0.0/16", ""},
		{"a more general route", "ip addr add 192.0.2.2/24 dev eth0 && ip route add 10.0.0.0/8 via 192.0.2.1", "10.20.0.0/16", ""},
		{"IPv6: a cable's network", "ip addr add fd20::1/64 dev eth0 nodad", "fd20::/64", "goes through eth0 already"},
		{"another tunnel", "ip route add fd20::/64 dev eth0 proto 99 metric 50", "fd20::/64", "which is a tunnel's"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSpace(t)
			l := s.host()
			s.cable()
			s.run(tt.setup)
			s.tun("tnl0")
			want(t, l.SetLink("tnl0", prefixes("10.77.0.2/32", "fd77::2/128"), 1420))
			before := s.dump()
			err := l.SetRoutes("tnl0", prefixes("10.77.0.0/16", tt.route))
			if tt.want == "" {
				want(t, err)
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.route) {
				t.Errorf("err = %v, want %q with the route", err, tt.want)
			}
			if after := s.dump(); after != before {
				t.Errorf("refused, yet changed:\n%s", after)
			}
		})
	}
}

// TestMarkedSocketThroughStrictFilter sends from a marked socket past a default
// route through the tunnel, and waits for the answer on a host whose reverse path
// filter is strict.
func TestMarkedSocketThroughStrictFilter(t *testing.T) {
	far := newSpace(t)
	far.run("ip addr add 203.0.113.5/32 dev lo")
	s := newSpace(t)
	s.veth("eth0", far, "eth0")
	far.run("ip addr add 192.0.2.1/24 dev eth0")
	s.run("ip addr add 192.0.2.2/24 dev eth0 && ip route add default via 192.0.2.1 && sysctl -w net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1")
	l := s.host()
	s.tun("tnl0")
	want(t, l.SetLink("tnl0", prefixes("10.77.0.2/32"), 1420))
	before := s.dump()
	want(t, l.SetRoutes("tnl0", prefixes("0.0.0.0/0")))

	far.echo("203.0.113.5:7")
	s.enter()
	if from, err := ask(s, "203.0.113.5:7", Mark, 8); err != nil || from.Addr() != netip.MustParseAddr("192.0.2.2") {
		t.Errorf("marked: answered as %v, %v, want 192.0.2.2", from, err)
	}
	if problems, err := l.Problems("tnl0"); err != nil || len(problems) != 1 || !strings.Contains(problems[0].What, "IPv4 forwarding") {
		t.Errorf("Problems = %v, %v, want forwarding alone", problems, err)
	}
	s.run("sysctl -w net.ipv4.conf.all.src_valid_mark=0")
	problems, err := l.Problems("tnl0")
	if err != nil || len(problems) != 2 || problems[1].Mended != "sysctl -w net.ipv4.conf.all.src_valid_mark=1" {
		t.Fatalf("src_valid_mark off: Problems = %v, %v", problems, err)
	}
	s.run(problems[1].Mended)
	want(t, l.Cleanup("tnl0"))
	if after := s.dump(); after != before {
		t.Errorf("after:\n%s\nwant as before:\n%s", after, before)
	}
}
