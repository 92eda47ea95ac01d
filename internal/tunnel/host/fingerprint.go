package host

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Fingerprint names where packets that are not for a tunnel go: the default
// routes of the main table, the interfaces that lead to a router, whether they
// are up, and their addresses. In a family without any router it is all
// interfaces with an address: in a laboratory the only address is all there is.
func (l *Linux) Fingerprint() (name string, err error) {
	err = l.do(func() error {
		links, err := dump(l.nl.LinkList)
		if err != nil {
			return fmt.Errorf("listing interfaces: %w", err)
		}
		addresses, err := l.addresses(nil)
		if err != nil {
			return err
		}
		var facts []string
		for _, fam := range families {
			routes, err := l.list(fam, unix.RT_TABLE_MAIN)
			if err != nil {
				return err
			}
			facts = append(facts, l.familyFacts(fam, links, addresses, routes)...)
		}
		slices.Sort(facts)
		name = strings.Join(slices.Compact(facts), "; ")
		return nil
	})
	return name, err
}

// familyFacts are the parts of a fingerprint that one family contributes.
func (l *Linux) familyFacts(fam int, links []netlink.Link, addresses []address, routes []netlink.Route) (facts []string) {
	leading := make(map[int]bool) // interfaces that lead to a router
	for _, r := range routes {
		if l.isOurs(r.LinkIndex) || r.Protocol == Protocol {
			continue
		}
		if isDefault(r) {
			facts = append(facts, defaultFacts(r)...)
		}
		if isDefault(r) || r.Gw != nil || r.Via != nil {
			leading[r.LinkIndex] = true
		}
		for _, hop := range r.MultiPath {
			leading[hop.LinkIndex] = true
		}
	}
	delete(leading, 0)
	relevant := make(map[int]bool)
	for _, a := range addresses {
		if len(leading) > 0 && !leading[a.LinkIndex] || !counts(fam, a) || l.isOurs(a.LinkIndex) {
			continue
		}
		relevant[a.LinkIndex] = true
		facts = append(facts, fmt.Sprintf("address %v dev %d", a.prefix, a.LinkIndex))
	}
	for _, link := range links {
		index := link.Attrs().Index
		if (relevant[index] || leading[index]) && !isUp(link) {
			facts = append(facts, fmt.Sprintf("dev %d down", index))
		}
	}
	return facts
}

// defaultFacts are those of one default route, one a next hop.
func defaultFacts(r netlink.Route) (facts []string) {
	if len(r.MultiPath) == 0 {
		return []string{fmt.Sprintf("default %v via %v dev %d metric %d", r.Dst, r.Gw, r.LinkIndex, r.Priority)}
	}
	for _, hop := range r.MultiPath {
		facts = append(facts, fmt.Sprintf("default %v via %v dev %d metric %d", r.Dst, hop.Gw, hop.LinkIndex, r.Priority))
	}
	return facts
}

// counts reports whether packets of the family may have the address as source:
// one that other hosts can answer, and that the kernel has finished checking.
func counts(fam int, a address) bool {
	return family(a.prefix) == fam &&
		!a.prefix.Addr().IsLoopback() && !a.prefix.Addr().IsLinkLocalUnicast() &&
		a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0
}
