package netlab

import (
	"bytes"
	"fmt"
	"os/exec"

	"github.com/vishvananda/netlink"
)

// NAT is address translation on a host, as a home router does it: what leaves
// by one interface gets its address, and nothing comes in by it unasked. Its
// filter takes no notice of the others.
type NAT struct {
	host    *Host
	outside string
	rebinds int
}

const (
	natFirstPort = 20000
	natPorts     = 1000 // to each generation of mappings
)

// NAT makes a host forward and translate. It needs nft.
func (l *Lab) NAT(h *Host, outside string) (*NAT, error) {
	n := &NAT{host: h, outside: outside}
	if err := h.Forward(true); err != nil {
		return nil, err
	}
	if err := n.apply(); err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.nat = n
	h.mu.Unlock()
	return n, nil
}

// Rebind forgets every mapping: what goes out next gets a port that none had
// before, and what still comes to the old ones is dropped. It is for one
// goroutine at a time.
func (n *NAT) Rebind() error {
	n.rebinds++
	if err := n.apply(); err != nil {
		return err
	}
	return n.forget()
}

// SetOutside gives the outside interface another address and forgets the
// mappings to the old one.
func (n *NAT) SetOutside(router string, addrs ...string) error {
	if err := n.host.SetAddr(n.outside, addrs...); err != nil {
		return err
	}
	if err := n.host.DefaultRoute(router); err != nil {
		return err
	}
	return n.forget()
}

func (n *NAT) forget() error {
	if err := n.host.nl.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		return fmt.Errorf("host %s: forget the mappings: %w", n.host.name, err)
	}
	return nil
}

// ports returns the first and last source port of the present mappings.
func (n *NAT) ports() (first, last int) {
	first = natFirstPort + n.rebinds%40*natPorts
	return first, first + natPorts - 1
}

func (n *NAT) apply() error {
	first, last := n.ports()
	return n.host.Nft(fmt.Sprintf(`
table inet netlab
delete table inet netlab
table inet netlab {
	chain out {
		type nat hook postrouting priority srcnat
		oifname %[1]q meta l4proto { tcp, udp } masquerade to :%[2]d-%[3]d
		oifname %[1]q masquerade
	}
	chain in {
		type filter hook input priority filter
		iifname %[1]q ct state established,related accept
		iifname %[1]q meta nfproto ipv6 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		iifname %[1]q drop
	}
}
`, n.outside, first, last))
}

// Nft applies a rule set on the host. It needs the program nft.
func (h *Host) Nft(rules string) error {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return fmt.Errorf("host %s: %w", h.name, errNoNft)
	}
	var out bytes.Buffer
	cmd := exec.Command(nft, "-f", "-")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader([]byte(rules)), &out, &out
	if err := h.onKeeper(cmd.Run); err != nil {
		return fmt.Errorf("host %s: nft: %w: %s", h.name, err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
