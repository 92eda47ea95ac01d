package host

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Overlap implements [Host].
func (l *Linux) Overlap(p netip.Prefix, skip func(ifname string) bool) (found netip.Prefix, ifname string, ok bool, err error) {
	p = p.Masked()
	err = l.do(func() error {
		names, err := l.linkNames()
		if err != nil {
			return err
		}
		look := func(q netip.Prefix, index int) {
			if !q.Overlaps(p) || skip != nil && skip(names[index]) || ok && found.Bits() <= q.Bits() {
				return
			}
			found, ifname, ok = q, names[index], true
		}
		addresses, err := l.addresses(nil)
		if err != nil {
			return err
		}
		for _, a := range addresses {
			look(a.prefix, a.LinkIndex)
		}
		routes, err := l.list(family(p), unix.RT_TABLE_MAIN)
		if err != nil {
			return err
		}
		for _, r := range routes {
			dst, isPrefix := prefix(r.Dst)
			// The halves of everything are how other tunnels spell a default route.
			if !isPrefix || dst.Bits() <= 1 || r.Protocol == Protocol {
				continue
			}
			look(dst, outgoing(r))
		}
		return nil
	})
	return found, ifname, ok, err
}

// outgoing is the index of the interface, or of the first of several, that the
// route leads to; 0 for one that leads nowhere ("unreachable").
func outgoing(r netlink.Route) int {
	if r.LinkIndex == 0 && len(r.MultiPath) > 0 {
		return r.MultiPath[0].LinkIndex
	}
	return r.LinkIndex
}
