package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// plug prepares an interface that was just made, and sets it up.
func (h *Host) plug(ifname string, mac net.HardwareAddr) error {
	link, err := h.link(ifname)
	if err != nil {
		return err
	}
	if err := h.nl.LinkSetHardwareAddr(link, mac); err != nil {
		return fmt.Errorf("host %s: hardware address of %s: %w", h.name, ifname, err)
	}
	// No waiting for duplicates on a wire of two, and no asking for routers.
	for _, key := range []string{"accept_dad", "accept_ra", "router_solicitations"} {
		if err := h.Sysctl("net/ipv6/conf/"+ifname+"/"+key, "0"); err != nil {
			return err
		}
	}
	if err := h.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("host %s: set %s up: %w", h.name, ifname, err)
	}
	return nil
}

func (h *Host) link(ifname string) (netlink.Link, error) {
	link, err := h.nl.LinkByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("host %s: interface %q: %w", h.name, ifname, err)
	}
	return link, nil
}

// HasInterface reports whether there is an interface of that name.
func (h *Host) HasInterface(ifname string) bool {
	_, err := h.link(ifname)
	return err == nil
}

// SetUp sets an interface up or down.
func (h *Host) SetUp(ifname string, up bool) error {
	link, err := h.link(ifname)
	if err != nil {
		return err
	}
	set := h.nl.LinkSetDown
	if up {
		set = h.nl.LinkSetUp
	}
	if err := set(link); err != nil {
		return fmt.Errorf("host %s: set %s up (%v): %w", h.name, ifname, up, err)
	}
	return nil
}

// Addrs returns the addresses of an interface with their prefix lengths,
// without the link-local ones.
func (h *Host) Addrs(ifname string) ([]netip.Prefix, error) {
	link, err := h.link(ifname)
	if err != nil {
		return nil, err
	}
	list, err := dump(func() ([]netlink.Addr, error) { return h.nl.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("host %s: addresses of %s: %w", h.name, ifname, err)
	}
	var found []netip.Prefix
	for _, a := range list {
		if p := toPrefix(a.IPNet); !p.Addr().IsLinkLocalUnicast() {
			found = append(found, p)
		}
	}
	return found, nil
}

// SetAddr makes the addresses of an interface exactly these, each written as
// address/length. Routes by way of a router go with an address they cannot do
// without, as when a lease changes: see [Host.DefaultRoute].
func (h *Host) SetAddr(ifname string, addrs ...string) error {
	link, err := h.link(ifname)
	if err != nil {
		return err
	}
	want := map[netip.Prefix]bool{}
	for _, s := range addrs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("host %s: address of %s: %w", h.name, ifname, err)
		}
		want[p] = true
	}
	have, err := h.Addrs(ifname)
	if err != nil {
		return err
	}
	for _, p := range have {
		if want[p] {
			delete(want, p)
			continue
		}
		if err := h.nl.AddrDel(link, &netlink.Addr{IPNet: fromPrefix(p)}); err != nil {
			return fmt.Errorf("host %s: take %v from %s: %w", h.name, p, ifname, err)
		}
	}
	for p := range want {
		addr := &netlink.Addr{IPNet: fromPrefix(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.nl.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("host %s: give %v to %s: %w", h.name, p, ifname, err)
		}
		if p.Addr().Is6() {
			if err := h.waitSolicited(ifname, p.Addr()); err != nil {
				return err
			}
		}
	}
	return nil
}

// waitSolicited waits until the host hears neighbour solicitations for its new
// address. The kernel joins their group (RFC 4291, section 2.7.1) some time
// after it has taken the address, and who asks before that asks again only
// after a second.
func (h *Host) waitSolicited(ifname string, a netip.Addr) error {
	ip := a.As16()
	group := fmt.Sprintf("ff0200000000000000000001ff%x", ip[13:])
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := Poll(ctx, time.Millisecond, func() (joined bool, err error) {
		err = h.Do(func() error {
			table, err := os.ReadFile("/proc/thread-self/net/igmp6")
			for line := range strings.Lines(string(table)) {
				f := strings.Fields(line)
				joined = joined || len(f) > 2 && f[1] == ifname && f[2] == group
			}
			return err
		})
		return joined, err
	})
	if err != nil {
		return fmt.Errorf("host %s: join the solicited-node group of %v on %s: %w", h.name, a, ifname, err)
	}
	return nil
}

// DefaultRoute sends what has no better route to a router; there is one such
// route for each family.
func (h *Host) DefaultRoute(router string) error {
	gw, err := netip.ParseAddr(router)
	if err != nil {
		return fmt.Errorf("host %s: default route: %w", h.name, err)
	}
	all := "0.0.0.0/0"
	if gw.Is6() {
		all = "::/0"
	}
	return h.Route(all, router)
}

// Route sends a prefix to a router, instead of what it was sent to.
func (h *Host) Route(prefix, router string) error {
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return fmt.Errorf("host %s: route: %w", h.name, err)
	}
	gw, err := netip.ParseAddr(router)
	if err != nil {
		return fmt.Errorf("host %s: route to %v: %w", h.name, p, err)
	}
	if err := h.nl.RouteReplace(&netlink.Route{Dst: fromPrefix(p), Gw: gw.AsSlice()}); err != nil {
		return fmt.Errorf("host %s: route to %v by way of %v: %w", h.name, p, gw, err)
	}
	return nil
}

// Routes returns the destinations that the main table sends out of an
// interface, without the link-local and multicast ones.
func (h *Host) Routes(ifname string) ([]netip.Prefix, error) {
	link, err := h.link(ifname)
	if err != nil {
		return nil, err
	}
	list, err := dump(func() ([]netlink.Route, error) { return h.nl.RouteList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("host %s: routes of %s: %w", h.name, ifname, err)
	}
	var found []netip.Prefix
	for _, r := range list {
		if r.Dst == nil {
			continue
		}
		if p := toPrefix(r.Dst); !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast() {
			found = append(found, p)
		}
	}
	return found, nil
}

// Rules returns how many routing policy rules the host has beyond the
// kernel's own.
func (h *Host) Rules() (int, error) {
	list, err := dump(func() ([]netlink.Rule, error) { return h.nl.RuleList(netlink.FAMILY_ALL) })
	if err != nil {
		return 0, fmt.Errorf("host %s: rules: %w", h.name, err)
	}
	n := 0
	for _, r := range list {
		if r.Table != unix.RT_TABLE_LOCAL && r.Table != unix.RT_TABLE_MAIN && r.Table != unix.RT_TABLE_DEFAULT || r.SuppressPrefixlen >= 0 {
			n++
		}
	}
	return n, nil
}

// dump repeats a listing that something changed under.
func dump[T any](list func() ([]T, error)) (found []T, err error) {
	for range 5 {
		if found, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return found, err
}

func fromPrefix(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func toPrefix(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}
