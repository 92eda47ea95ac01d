package host

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"tunneld/internal/event"
)

// Settings of an interface that netlink takes, so that no writable /proc/sys is
// needed for it (linux/if_link.h, linux/ip.h).
const (
	inetConf     = 1 // IFLA_INET_CONF
	devconfRP    = 8 // IPV4_DEVCONF_RP_FILTER
	addrGenNone  = 1 // IN6_ADDR_GEN_MODE_NONE
	reverseLoose = 2 // rp_filter: the source must be reachable somehow
)

// SetLink implements [Host].
func (l *Linux) SetLink(ifname string, addresses []netip.Prefix, mtu int) error {
	return l.do(func() error {
		link, err := l.link(ifname)
		if err != nil {
			return err
		}
		if err := checkIPv6(ifname, addresses); err != nil {
			return err
		}
		l.claim(link.Attrs().Index) // first, so that the watcher knows whose changes follow
		if link.Attrs().MTU != mtu {
			if err := l.nl.LinkSetMTU(link, mtu); err != nil {
				return fmt.Errorf("interface %s: mtu %d: %w", ifname, mtu, err)
			}
		}
		up := link.Attrs().Flags&net.FlagUp != 0
		if !up {
			l.quieten(link)
		}
		changed, err := l.setAddresses(link, addresses)
		if err != nil {
			return err
		}
		if !up {
			if err := l.nl.LinkSetUp(link); err != nil {
				return fmt.Errorf("interface %s: setting it up: %w", ifname, err)
			}
		}
		if changed || !up { // the kernel drops routes with their source address, and with the link
			if routes := l.routes[link.Attrs().Index]; len(routes) > 0 {
				return l.setRoutes(ifname, routes)
			}
		}
		return nil
	})
}

// checkIPv6 refuses IPv6 addresses where the administrator has switched IPv6
// off: to switch it on for one interface is not ours to decide.
func checkIPv6(ifname string, addresses []netip.Prefix) error {
	i := slices.IndexFunc(addresses, func(p netip.Prefix) bool { return p.Addr().Is6() })
	if i < 0 {
		return nil
	}
	path := "ipv6/conf/" + ifname + "/disable_ipv6"
	off, ok, err := sysctl(path)
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("interface %s: address %v: this kernel has no IPv6 (ipv6.disable=1): use a network without IPv6 pools", ifname, addresses[i])
	case off != 0:
		return fmt.Errorf(`interface %s: address %v: IPv6 is disabled by %s = %d: run "sysctl -w %s=0 %s=0", or use a network without IPv6 pools`,
			ifname, addresses[i], sysctlName(path), off, sysctlName("ipv6/conf/default/disable_ipv6"), sysctlName(path))
	}
	return nil
}

// quieten keeps the kernel from speaking on the tunnel by itself: without a
// link-local address it solicits no routers. It also loosens a strict reverse
// path filter, which knows less about sources than the engine that checked
// them. What fails here costs no packet of the user's.
func (l *Linux) quieten(link netlink.Link) {
	ifname := link.Attrs().Name
	if haveIPv6() {
		if err := l.nl.LinkSetIP6AddrGenMode(link, addrGenNone); err != nil {
			l.log.Debug("link-local address stays on", event.KeyTunnel, ifname, event.KeyErr, err)
		}
		if err := setSysctl("ipv6/conf/"+ifname+"/accept_ra", 0); err != nil {
			l.log.Debug("router advertisements stay on", event.KeyTunnel, ifname, event.KeyErr, err)
		}
	}
	if strict, err := strictReversePath(ifname); err == nil && strict {
		if err := l.setDevconf(link, devconfRP, reverseLoose); err != nil {
			l.log.Warn("reverse path filter stays strict", event.KeyTunnel, ifname, event.KeyErr, err)
		}
	}
}

// setDevconf sets one IPv4 setting of an interface.
func (l *Linux) setDevconf(link netlink.Link, key int, value uint32) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil).AddRtAttr(key, nl.Uint32Attr(value))
	req.AddData(spec)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// setAddresses makes the addresses of the link exactly those wanted, apart from
// link-local ones. Those that stay are not touched.
func (l *Linux) setAddresses(link netlink.Link, wanted []netip.Prefix) (changed bool, err error) {
	ifname := link.Attrs().Name
	present, err := l.addresses(link)
	if err != nil {
		return false, err
	}
	for _, a := range present {
		if a.prefix.Addr().IsLinkLocalUnicast() || slices.Contains(wanted, a.prefix) {
			continue
		}
		changed = true
		err := l.nl.AddrDel(link, &a.Addr)
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return true, fmt.Errorf("interface %s: removing address %v: %w", ifname, a.prefix, err)
		}
	}
	if changed { // with a primary IPv4 address its secondary ones may be gone too
		if present, err = l.addresses(link); err != nil {
			return true, err
		}
	}
	for _, p := range wanted {
		if slices.ContainsFunc(present, func(a address) bool { return a.prefix == p }) {
			continue
		}
		changed = true
		if err := l.nl.AddrAdd(link, newAddress(p)); err != nil && !errors.Is(err, unix.EEXIST) {
			return true, fmt.Errorf("interface %s: adding address %v: %w", ifname, p, err)
		}
	}
	return changed, nil
}

// newAddress has neither a broadcast address (a tunnel has no broadcasts) nor
// duplicate detection (the pool knows better, and it would take a second).
func newAddress(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p), Broadcast: net.IPv4zero}
	if p.Addr().Is6() {
		a.Broadcast = nil
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// address is one that an interface has.
type address struct {
	netlink.Addr
	prefix netip.Prefix
}

// addresses lists the addresses of link, or of all links if link is nil.
func (l *Linux) addresses(link netlink.Link) ([]address, error) {
	list, err := dump(func() ([]netlink.Addr, error) { return l.nl.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	all := make([]address, 0, len(list))
	for _, a := range list {
		p, ok := prefix(a.IPNet)
		if !ok {
			continue
		}
		all = append(all, address{Addr: a, prefix: p})
	}
	return all, nil
}

// claim remembers an interface as ours, and forgets those that are gone.
func (l *Linux) claim(index int) {
	names, err := l.linkNames()
	gone := func(i int) bool { return err == nil && names[i] == "" }
	maps.DeleteFunc(l.routes, func(i int, _ []netip.Prefix) bool { return gone(i) })
	l.oursMu.Lock()
	defer l.oursMu.Unlock()
	maps.DeleteFunc(l.ours, func(i int, _ bool) bool { return gone(i) })
	l.ours[index] = true
}

// isOurs reports whether SetLink was called for the interface.
func (l *Linux) isOurs(index int) bool {
	l.oursMu.Lock()
	defer l.oursMu.Unlock()
	return l.ours[index]
}

// FreeInterface implements [Host].
func (l *Linux) FreeInterface(prefix string, taken func(string) bool) (name string, err error) {
	err = l.do(func() error {
		names, err := l.linkNames()
		if err != nil {
			return err
		}
		used := make(map[string]bool, len(names))
		for _, n := range names {
			used[n] = true
		}
		for i := 0; ; i++ {
			name = fmt.Sprintf("%s%d", prefix, i)
			if len(name) >= unix.IFNAMSIZ {
				return fmt.Errorf("no free interface name %s0, %s1, …: names end at %d characters", prefix, prefix, unix.IFNAMSIZ-1)
			}
			if !used[name] && (taken == nil || !taken(name)) {
				return nil
			}
		}
	})
	if err != nil {
		return "", err
	}
	return name, nil
}
