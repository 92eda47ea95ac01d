package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tunneld/internal/event"
)

// Default routes through tunnels work as those of wg-quick(8): two rules per
// family, whatever the number of tunnels,
//
//	5180: from all lookup main suppress_prefixlength 0
//	5181: not from all fwmark 0x746e lookup 5182
//
// so that whatever the main table knows better than by its default route goes
// as before, marked packets fall through to the main table's default route, and
// everything else takes ours.
const (
	ruleMain   = 5180
	ruleTunnel = 5181
)

// metric is the priority of our routes in the main table: before those that
// DHCP clients and network managers install, behind a metric given as 0.
const metric = 50

// families are those that routes and rules are kept in.
var families = [...]int{netlink.FAMILY_V4, netlink.FAMILY_V6}

// SetRoutes implements [Host].
func (l *Linux) SetRoutes(ifname string, routes []netip.Prefix) error {
	return l.do(func() error { return l.setRoutes(ifname, routes) })
}

func (l *Linux) setRoutes(ifname string, routes []netip.Prefix) error {
	link, err := l.link(ifname)
	if errors.Is(err, ErrNoInterface) && len(routes) == 0 {
		return l.sweepRules()
	}
	if err != nil {
		return err
	}
	wanted, err := l.wantedRoutes(link, routes)
	if err != nil {
		return err
	}
	present, err := l.tableRoutes()
	if err != nil {
		return err
	}
	missing, surplus := compareRoutes(link.Attrs().Index, wanted, present)
	for _, r := range missing {
		if err := l.refuseConflict(ifname, r, present); err != nil {
			return err
		}
	}
	for _, r := range missing {
		if err := l.nl.RouteReplace(&r); err != nil {
			return fmt.Errorf("interface %s: adding route %v: %w", ifname, r.Dst, err)
		}
	}
	if err := l.removeRoutes(ifname, surplus, present); err != nil {
		return err
	}
	l.routes[link.Attrs().Index] = slices.Clone(routes)
	return l.sweepRules()
}

// removeRoutes takes routes away, the rules that lead to them first.
func (l *Linux) removeRoutes(ifname string, surplus, present []netlink.Route) error {
	for _, fam := range families {
		gone := func(r netlink.Route) bool { return r.Family == fam && isDefault(r) && r.Table == Table }
		if n := count(surplus, gone); n > 0 && n == count(present, gone) {
			if err := l.removeRules(fam); err != nil {
				return err
			}
		}
	}
	for _, r := range surplus {
		if err := l.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("interface %s: removing route %v: %w", ifname, r.Dst, err)
		}
	}
	return nil
}

// wantedRoutes spells the prefixes as routes. Each prefers the interface's first
// address of its family as source.
func (l *Linux) wantedRoutes(link netlink.Link, prefixes []netip.Prefix) ([]netlink.Route, error) {
	addresses, err := l.addresses(link)
	if err != nil {
		return nil, err
	}
	var wanted []netlink.Route
	for _, p := range prefixes {
		if !p.IsValid() {
			return nil, fmt.Errorf("interface %s: route %v is no prefix", link.Attrs().Name, p)
		}
		p = p.Masked()
		r := netlink.Route{
			LinkIndex: link.Attrs().Index,
			Family:    family(p),
			Dst:       ipNet(p),
			Table:     unix.RT_TABLE_MAIN,
			Protocol:  Protocol,
			Priority:  metric,
			Type:      unix.RTN_UNICAST,
		}
		if p.Bits() == 0 {
			r.Table = Table
		}
		if p.Addr().Is4() {
			r.Scope = netlink.SCOPE_LINK
		}
		for _, a := range addresses {
			if family(a.prefix) == r.Family && !a.prefix.Addr().IsLinkLocalUnicast() {
				r.Src = a.prefix.Addr().AsSlice()
				break
			}
		}
		wanted = append(wanted, r)
	}
	return wanted, nil
}

// tableRoutes lists the main table and ours, both families.
func (l *Linux) tableRoutes() (all []netlink.Route, err error) {
	for _, fam := range families {
		for _, table := range [...]int{unix.RT_TABLE_MAIN, Table} {
			routes, err := l.list(fam, table)
			if err != nil {
				return nil, err
			}
			all = append(all, routes...)
		}
	}
	return all, nil
}

// list lists one table of one family; a kernel without the family has none.
func (l *Linux) list(fam, table int) ([]netlink.Route, error) {
	if fam == netlink.FAMILY_V6 && !haveIPv6() {
		return nil, nil
	}
	routes, err := dump(func() ([]netlink.Route, error) {
		return l.nl.RouteListFiltered(fam, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing routes of table %d: %w", table, err)
	}
	for i := range routes {
		routes[i].Family = fam
	}
	return routes, nil
}

// compareRoutes returns what must be added (or replaced, if only the source
// differs) and what removed so that our routes through the interface are those
// wanted.
func compareRoutes(index int, wanted, present []netlink.Route) (missing, surplus []netlink.Route) {
	for _, w := range wanted {
		if !slices.ContainsFunc(present, func(p netlink.Route) bool {
			return sameRoute(p, w) && p.Src.Equal(w.Src)
		}) {
			missing = append(missing, w)
		}
	}
	for _, p := range present {
		if p.Protocol == Protocol && p.LinkIndex == index &&
			!slices.ContainsFunc(wanted, func(w netlink.Route) bool { return sameRoute(p, w) }) {
			surplus = append(surplus, p)
		}
	}
	return missing, surplus
}

// sameRoute reports whether a and b are one route of ours, apart from the source.
func sameRoute(a, b netlink.Route) bool {
	return a.Protocol == b.Protocol && a.LinkIndex == b.LinkIndex &&
		a.Table == b.Table && a.Priority == b.Priority && sameDst(a, b)
}

func sameDst(a, b netlink.Route) bool {
	x, okx := prefix(a.Dst)
	y, oky := prefix(b.Dst)
	return okx && oky && x == y
}

// refuseConflict refuses a route whose prefix goes through another interface
// already, if that route would win, is a tunnel's too, or is the network of a
// cable of this host. A route of others with a higher metric (a leased line
// kept as backup, say) may stay beside ours.
func (l *Linux) refuseConflict(ifname string, r netlink.Route, present []netlink.Route) error {
	for _, p := range present {
		if p.LinkIndex == r.LinkIndex || p.Table != r.Table || !sameDst(p, r) {
			continue
		}
		if p.Protocol != Protocol && p.Protocol != unix.RTPROT_KERNEL && p.Priority > r.Priority {
			continue
		}
		other := fmt.Sprintf("interface %d", p.LinkIndex)
		if names, err := l.linkNames(); err == nil && names[p.LinkIndex] != "" {
			other = names[p.LinkIndex]
		}
		whose := "which is a route of this host: remove that one or leave the prefix out"
		if p.Protocol == Protocol {
			whose = "which is a tunnel's: only one tunnel can have the prefix"
		}
		return fmt.Errorf("interface %s: route %v goes through %s already, %s", ifname, r.Dst, other, whose)
	}
	return nil
}

// sweepRules makes rules, marks and the table's routes agree: a family has rules
// while our table has a default route of it.
func (l *Linux) sweepRules() error {
	any := false
	for _, fam := range families {
		if fam == netlink.FAMILY_V6 && !haveIPv6() {
			continue
		}
		routes, err := l.list(fam, Table)
		if err != nil {
			return err
		}
		if count(routes, isDefault) == 0 {
			if err := l.removeRules(fam); err != nil {
				return err
			}
			continue
		}
		any = true
		if err := l.addRules(fam); err != nil {
			return err
		}
	}
	l.keepReversePath(any)
	return nil
}

// rules are the two of one family, in the order in which they are added: with
// the second alone, nothing of the main table would be known.
func rules(fam int) []*netlink.Rule {
	byMain, byTunnel := netlink.NewRule(), netlink.NewRule()
	byMain.Family, byMain.Priority, byMain.Protocol = fam, ruleMain, Protocol
	byMain.Table, byMain.SuppressPrefixlen = unix.RT_TABLE_MAIN, 0

	byTunnel.Family, byTunnel.Priority, byTunnel.Protocol = fam, ruleTunnel, Protocol
	byTunnel.Table, byTunnel.Mark, byTunnel.Invert = Table, Mark, true
	return []*netlink.Rule{byMain, byTunnel}
}

// ourRules lists the rules of ours that a family has.
func (l *Linux) ourRules(fam int) ([]netlink.Rule, error) {
	all, err := dump(func() ([]netlink.Rule, error) { return l.nl.RuleList(fam) })
	if err != nil {
		return nil, fmt.Errorf("listing rules: %w", err)
	}
	return slices.DeleteFunc(all, func(r netlink.Rule) bool {
		return r.Protocol != Protocol || r.Priority != ruleMain && r.Priority != ruleTunnel
	}), nil
}

func (l *Linux) addRules(fam int) error {
	present, err := l.ourRules(fam)
	if err != nil {
		return err
	}
	for _, r := range rules(fam) {
		if slices.ContainsFunc(present, func(p netlink.Rule) bool { return p.Priority == r.Priority }) {
			continue
		}
		if err := l.nl.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("adding rule %d: %w", r.Priority, err)
		}
	}
	return nil
}

func (l *Linux) removeRules(fam int) error {
	present, err := l.ourRules(fam)
	if err != nil {
		return err
	}
	slices.SortFunc(present, func(a, b netlink.Rule) int { return b.Priority - a.Priority })
	for _, r := range present {
		r.Family = fam
		if err := l.nl.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("removing rule %d: %w", r.Priority, err)
		}
	}
	return nil
}

// keepReversePath lets the answers to marked packets pass a strict reverse path
// filter while default routes go through a tunnel. Seen without their mark they
// would have to come out of the tunnel, so the packet filter gives incoming
// packets the mark of the socket they belong to, and src_valid_mark makes the
// check look at it. Without this only hosts with a strict filter suffer, which
// Problems then reports.
func (l *Linux) keepReversePath(defaults bool) {
	if err := l.setMarking(defaults); err != nil {
		l.log.Warn("incoming packets of the tunnel stay unmarked", event.KeyErr, err)
	}
	if !defaults {
		if l.vmark {
			if err := setSysctl(srcValidMark, 0); err != nil {
				l.log.Warn("sysctl stays changed", event.KeyErr, err)
			}
			l.vmark = false
		}
		return
	}
	strict, err := strictAnywhere()
	if err != nil || !strict {
		return
	}
	if v, ok, err := sysctl(srcValidMark); err != nil || !ok || v != 0 {
		return
	}
	if err := setSysctl(srcValidMark, 1); err != nil {
		l.log.Warn("strict reverse path filter may drop the tunnel's packets", event.KeyErr, err)
		return
	}
	l.vmark = true
}

func isDefault(r netlink.Route) bool {
	p, ok := prefix(r.Dst)
	return !ok || p.Bits() == 0
}

func count[T any](list []T, f func(T) bool) (n int) {
	for _, x := range list {
		if f(x) {
			n++
		}
	}
	return n
}
