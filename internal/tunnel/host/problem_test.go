package host

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// problemHost is a gateway: a tunnel and a cable, forwarding on.
func problemHost(t *testing.T, addresses ...string) (*space, *Linux) {
	s := newSpace(t)
	l := s.host()
	s.cable()
	s.run(`ip addr add 192.0.2.2/24 dev eth0 &&
		sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1`)
	s.tun("tnl0")
	want(t, l.SetLink("tnl0", prefixes(addresses...), 1420))
	return s, l
}

func TestProblemsOfSettings(t *testing.T) {
	tests := []struct {
		name      string
		addresses []string
		setup     string
		what      string // of the one problem; empty: none
		mended    string
	}{
		{"all is well", []string{"10.77.0.1/16", "fd77::1/64"}, "true", "", ""},
		{"IPv4 off", []string{"10.77.0.1/16", "fd77::1/64"}, "sysctl -w net.ipv4.ip_forward=0", "IPv4 forwarding is off", "sysctl -w net.ipv4.ip_forward=1"},
		{"IPv4 off, not used", []string{"fd77::1/64"}, "sysctl -w net.ipv4.ip_forward=0", "", ""},
		{"IPv4 off on the tunnel", []string{"10.77.0.1/16"}, "sysctl -w net.ipv4.conf.tnl0.forwarding=0", "IPv4 forwarding is off on tnl0", "sysctl -w net.ipv4.conf.tnl0.forwarding=1"},
		{"IPv6 off", []string{"10.77.0.1/16", "fd77::1/64"}, "sysctl -w net.ipv6.conf.all.forwarding=0", "IPv6 forwarding is off", "sysctl -w net.ipv6.conf.all.forwarding=1"},
		{"IPv6 off, not used", []string{"10.77.0.1/16"}, "sysctl -w net.ipv6.conf.all.forwarding=0", "", ""},
		{"IPv6 off, default route from advertisements", []string{"fd77::1/64"},
			"sysctl -w net.ipv6.conf.all.forwarding=0 net.ipv6.conf.eth0.accept_ra=1 && ip -6 route add default via fe80::1 dev eth0 proto ra",
			"IPv6 forwarding is off", "sysctl -w net.ipv6.conf.eth0.accept_ra=2 net.ipv6.conf.all.forwarding=1"},
		{"strict reverse path", []string{"10.77.0.1/16"}, "sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.tnl0.rp_filter=1",
			"the reverse path filter of tnl0 is strict", "sysctl -w net.ipv4.conf.tnl0.rp_filter=2"},
		{"strict elsewhere", []string{"10.77.0.1/16"}, "sysctl -w net.ipv4.conf.eth0.rp_filter=1", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, l := problemHost(t, tt.addresses...)
			s.run(tt.setup)
			wantProblem(t, s, l, tt.what, tt.mended)
		})
	}
}

// wantProblem checks the one problem that is there, does what it says mends it,
// and finds none.
func wantProblem(t *testing.T, s *space, l *Linux, what, mended string) {
	t.Helper()
	problems, err := l.Problems("tnl0")
	want(t, err)
	if what == "" {
		if len(problems) != 0 {
			t.Errorf("Problems = %q, want none", problems)
		}
		return
	}
	if len(problems) != 1 || !strings.Contains(problems[0].What, what) || problems[0].Mended != mended {
		t.Fatalf("Problems = %q, want one: %q, %q", problems, what, mended)
	}
	s.run(problems[0].Mended)
	if problems, err = l.Problems("tnl0"); err != nil || len(problems) != 0 {
		t.Errorf("after %s: Problems = %q, %v, want none", mended, problems, err)
	}
}

func TestProblemsOfFilter(t *testing.T) {
	const (
		both = `nft insert rule inet fw forward iifname "tnl0" accept && nft insert rule inet fw forward oifname "tnl0" accept`
		back = `nft insert rule inet fw forward oifname "tnl0" accept`
		in   = "what is forwarded from tnl0 (chain inet fw forward)"
		out  = "the answers forwarded to tnl0 (chain inet fw forward)"
	)
	drop := func(rules string) string {
		return "table inet fw { chain side { iifname tnl0 accept; }; chain forward { type filter hook forward priority 0; policy drop; " + rules + " }; }"
	}
	tests := []struct {
		name, ruleset string
		what, mended  string
	}{
		{"policy drop", drop(""), in, both},
		{"policy accept", "table inet fw { chain forward { type filter hook forward priority 0; policy accept; }; }", "", ""},
		{"an input chain is another thing", "table inet fw { chain in { type filter hook input priority 0; policy drop; }; }", "", ""},
		{"a final reject", "table inet fw { chain forward { type filter hook forward priority 0; ct state established,related accept; iifname eth0 accept; counter reject with icmpx admin-prohibited; }; }", in, both},
		{"stateful, others only", drop("ct state established,related accept; iifname docker0 accept; iifname eth0 oifname eth1 accept; meta l4proto icmp accept;"), in, both},
		{"stateful by a set", drop("ct state { established, related } accept;"), in, both},
		{"stateful by a map", drop("ct state vmap { established : accept, related : accept, invalid : drop };"), in, both},
		{"the tunnel is accepted", drop("ct state vmap { established : accept, related : accept }; iifname tnl0 accept;"), "", ""},
		{"by number", drop("ct state established accept; iif tnl0 accept;"), "", ""},
		{"by wildcard", drop(`ct state established accept; iifname "tnl*" accept;`), "", ""},
		{"by a set", drop("ct state established accept; iifname { tnl0, eth1 } accept;"), "", ""},
		{"by a map", drop("ct state established accept; iifname vmap { tnl0 : jump side };"), "", ""},
		{"by a map that goes nowhere", drop("ct state established accept; iifname vmap { tnl1 : jump side };"), in, both},
		{"by a jump", drop("ct state established accept; jump side;"), "", ""},
		{"to one cable", drop("ct state established accept; iifname tnl0 oifname eth0 accept;"), "", ""},
		{"by what is not known", drop("ct state established accept; ip saddr 10.77.0.0/16 accept;"), "", ""},
		{"by a mark", drop("ct state established accept; meta mark 7 accept;"), "", ""},
		{"no answers", drop("iifname tnl0 accept;"), out, back},
		{"dropped by what is not known", "table inet fw { chain forward { type filter hook forward priority 0; ip saddr 198.51.100.0/24 drop; ct state invalid drop; limit rate over 5/second drop; }; }", "", ""},
		{"a drop of the tunnel", "table inet fw { chain forward { type filter hook forward priority 0; iifname != eth0 drop; }; }", in, both},
		{"IPv6 alone, which is not used", "table ip6 fw { chain forward { type filter hook forward priority 0; policy drop; }; }", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, l := problemHost(t, "10.77.0.1/16")
			s.run("nft -f - <<'END'\n" + tt.ruleset + "\nEND")
			wantProblem(t, s, l, tt.what, tt.mended)
		})
	}
}

// TestProblemsOfIptables builds what iptables, where it is a front of nftables,
// makes of the rules that a container engine installs.
func TestProblemsOfIptables(t *testing.T) {
	s, l := problemHost(t, "10.77.0.1/16")
	s.run("ip link add docker0 type veth peer name docker1 && ip link set docker0 up && ip link set docker1 up")
	drop := nftables.ChainPolicyDrop
	conn, err := nftables.New()
	want(t, err)
	table := conn.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4})
	chain := conn.AddChain(&nftables.Chain{
		Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter, Policy: &drop,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	comment := xt.Comment("a comment")
	for _, exprs := range [][]expr.Any{
		{ // -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
			&expr.Match{Name: "conntrack", Rev: 3, Info: &xt.ConntrackMtinfo3{ConntrackMtinfo2: xt.ConntrackMtinfo2{
				ConntrackMtinfoBase: xt.ConntrackMtinfoBase{MatchFlags: uint16(xt.ConntrackState | xt.ConntrackStateAlias)},
				StateMask:           uint16(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED),
			}}},
			&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept},
		},
		{ // -i docker0 -m comment --comment "a comment" -j ACCEPT
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Register: 1, Data: []byte("docker0\x00")},
			&expr.Match{Name: "comment", Info: &comment},
			&expr.Verdict{Kind: expr.VerdictAccept},
		},
		{ // -o docker0 -d 172.17.0.2 -j ACCEPT
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Register: 1, Data: []byte("docker0\x00")},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
			&expr.Cmp{Register: 1, Data: []byte{172, 17, 0, 2}},
			&expr.Verdict{Kind: expr.VerdictAccept},
		},
	} {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
	}
	want(t, conn.Flush())
	wantProblem(t, s, l, "what is forwarded from tnl0 (chain ip filter FORWARD)",
		`nft insert rule ip filter FORWARD iifname "tnl0" accept && nft insert rule ip filter FORWARD oifname "tnl0" accept`)
}

func TestNotPermitted(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.tun("tnl0")
	s.run("true")
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before, data [2]unix.CapUserData
	want(t, unix.Capget(&header, &before[0]))
	data = before
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	want(t, unix.Capset(&header, &data[0])) // of this thread, which newSpace has locked
	defer func() { want(t, unix.Capset(&header, &before[0])) }()

	if _, err := New(nil); !errors.Is(err, ErrNotPermitted) || !strings.Contains(err.Error(), "AmbientCapabilities=CAP_NET_ADMIN") {
		t.Errorf("New: err = %v, want ErrNotPermitted and the way out", err)
	}
	for name, f := range map[string]func() error{
		"SetLink":       func() error { return l.SetLink("tnl0", prefixes("10.77.0.1/16"), 1420) },
		"SetMasquerade": func() error { return l.SetMasquerade("tnl0", prefixes("10.77.0.0/16")) },
	} {
		if err := f(); !errors.Is(err, ErrNotPermitted) {
			t.Errorf("%s: err = %v, want ErrNotPermitted", name, err)
		}
	}
}

func TestWorksFromAnyNamespace(t *testing.T) {
	s := newSpace(t)
	l := s.host()
	s.tun("tnl0")
	newSpace(t) // the thread is elsewhere now
	want(t, l.SetLink("tnl0", prefixes("10.77.0.1/16"), 1420))
	if got, err := l.FreeInterface("tnl", nil); err != nil || got != "tnl1" {
		t.Errorf("FreeInterface = %q, %v, want tnl1", got, err)
	}
	done := make(chan error)
	go func() { // a thread of the process's own namespace
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		problems, err := l.Problems("tnl0")
		if err == nil && len(problems) != 1 {
			err = errors.New("forwarding is off in a new namespace, and not found to be")
		}
		done <- err
	}()
	want(t, <-done)
	wantLines(t, s.run("ip addr show dev tnl0"), "inet 10.77.0.1/16")
}
