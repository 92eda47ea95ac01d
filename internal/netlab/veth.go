package netlab

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// Veth joins two hosts at the kernel's own speed, without a relay: for
// benchmarks. The pair vanishes with either host.
func (l *Lab) Veth(a *Host, ifA string, b *Host, ifB string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = ifA
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: ifB, PeerNamespace: netlink.NsFd(b.ns)}
	if err := a.nl.LinkAdd(link); err != nil {
		return fmt.Errorf("veth pair %s.%s-%s.%s: %w", a.name, ifA, b.name, ifB, err)
	}
	if err := a.plug(ifA, l.nextMAC()); err != nil {
		return err
	}
	return b.plug(ifB, l.nextMAC())
}
