package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FlushConntrack implements [Host].
func (l *Linux) FlushConntrack(addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	tenants := make(touching, len(addrs))
	for _, a := range addrs {
		tenants[a.Unmap()] = true
	}
	return l.do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if noFilter(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("connection tracking: %w", err)
		}
		defer nl.Close()
		for _, fam := range families {
			if err := flush(nl, netlink.InetFamily(fam), tenants); err != nil {
				return fmt.Errorf("forgetting tracked connections of %v: %w", addrs, err)
			}
		}
		return nil
	})
}

// flush repeats what a change of the table interrupted.
func flush(nl *netlink.Handle, fam netlink.InetFamily, tenants touching) (err error) {
	for range dumpAttempts {
		_, err = nl.ConntrackDeleteFilters(netlink.ConntrackTable, fam, tenants)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if noFilter(err) {
		return nil
	}
	return err
}

// touching matches the connections from or to its addresses, before or after a
// translation.
type touching map[netip.Addr]bool

// MatchConntrackFlow implements [netlink.CustomConntrackFilter].
func (t touching) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	for _, ip := range [...]net.IP{flow.Forward.SrcIP, flow.Forward.DstIP, flow.Reverse.SrcIP, flow.Reverse.DstIP} {
		if a, ok := netip.AddrFromSlice(ip); ok && t[a.Unmap()] {
			return true
		}
	}
	return false
}
