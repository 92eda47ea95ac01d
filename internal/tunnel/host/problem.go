package host

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// srcValidMark makes the reverse path filter look at a packet's mark.
const srcValidMark = "ipv4/conf/all/src_valid_mark"

// Problems implements [Host].
func (l *Linux) Problems(ifname string) (problems []Problem, err error) {
	err = l.do(func() error {
		link, err := l.link(ifname)
		if err != nil {
			return err
		}
		addresses, err := l.addresses(link)
		if err != nil {
			return err
		}
		uses := func(fam int) bool {
			return slices.ContainsFunc(addresses, func(a address) bool {
				return family(a.prefix) == fam && !a.prefix.Addr().IsLinkLocalUnicast()
			})
		}
		checks := [...]func() ([]Problem, error){
			func() ([]Problem, error) { return ipv4Forwarding(ifname) },
			func() ([]Problem, error) { return l.ipv4ReversePath(link) },
			func() ([]Problem, error) { return l.ipv6Forwarding() },
			func() ([]Problem, error) { return l.forwardFilter(link, uses) },
		}
		for i, check := range checks {
			if i < 2 && !uses(netlink.FAMILY_V4) || i == 2 && !uses(netlink.FAMILY_V6) {
				continue
			}
			found, err := check()
			if err != nil {
				return err
			}
			problems = append(problems, found...)
		}
		return nil
	})
	return problems, err
}

// ipv4Forwarding looks at the setting of the host and at the interface's own.
func ipv4Forwarding(ifname string) ([]Problem, error) {
	const all = "ipv4/ip_forward"
	on, ok, err := sysctl(all)
	if err != nil {
		return nil, err
	}
	if ok && on == 0 {
		return []Problem{{"IPv4 forwarding is off", setCommand(all, 1)}}, nil
	}
	own := "ipv4/conf/" + ifname + "/forwarding"
	on, ok, err = sysctl(own)
	if err != nil || !ok || on != 0 {
		return nil, err
	}
	return []Problem{{"IPv4 forwarding is off on " + ifname, setCommand(own, 1)}}, nil
}

// ipv6Forwarding looks at the host's one setting. An interface that has its
// default route from router advertisements loses it when forwarding goes on,
// unless accept_ra is 2, so the command sets that first.
func (l *Linux) ipv6Forwarding() ([]Problem, error) {
	const all = "ipv6/conf/all/forwarding"
	on, ok, err := sysctl(all)
	if err != nil || !ok || on != 0 {
		return nil, err
	}
	routes, err := l.list(netlink.FAMILY_V6, unix.RT_TABLE_MAIN)
	if err != nil {
		return nil, err
	}
	names, err := l.linkNames()
	if err != nil {
		return nil, err
	}
	var settings []string
	for _, r := range routes {
		path := "ipv6/conf/" + names[outgoing(r)] + "/accept_ra"
		if isDefault(r) && r.Protocol == unix.RTPROT_RA {
			if v, ok, _ := sysctl(path); ok && v == 1 {
				settings = append(settings, sysctlName(path)+"=2")
			}
		}
	}
	slices.Sort(settings)
	settings = append(slices.Compact(settings), sysctlName(all)+"=1")
	return []Problem{{"IPv6 forwarding is off", "sysctl -w " + strings.Join(settings, " ")}}, nil
}

// setCommand is what an administrator types.
func setCommand(path string, value int) string {
	return fmt.Sprintf("sysctl -w %s=%d", sysctlName(path), value)
}

// ipv4ReversePath looks for the strict reverse path filter in the two places
// where it would drop: at the tunnel, whose sources may have better routes, and,
// while IPv4 goes through the tunnel by default, at the interfaces where its own
// packets come in.
func (l *Linux) ipv4ReversePath(link netlink.Link) (problems []Problem, err error) {
	ifname := link.Attrs().Name
	strict, err := strictReversePath(ifname)
	if err != nil {
		return nil, err
	}
	if strict {
		problems = append(problems, Problem{
			"the reverse path filter of " + ifname + " is strict and drops packets from networks that have another route",
			setCommand("ipv4/conf/"+ifname+"/rp_filter", reverseLoose),
		})
	}
	routes, err := l.list(netlink.FAMILY_V4, Table)
	if err != nil || !slices.ContainsFunc(routes, func(r netlink.Route) bool {
		return r.LinkIndex == link.Attrs().Index && isDefault(r)
	}) {
		return problems, err
	}
	if strict, err = strictAnywhere(); err != nil || !strict {
		return problems, err
	}
	valid, _, err := sysctl(srcValidMark)
	if err != nil {
		return problems, err
	}
	const what = "a strict reverse path filter drops the tunnel's own packets while everything goes through "
	if f, err := readFilter(); err == nil && !f.marking {
		problems = append(problems, Problem{what + ifname, setCommand("ipv4/conf/all/rp_filter", reverseLoose)})
	} else if valid == 0 {
		problems = append(problems, Problem{what + ifname, setCommand(srcValidMark, 1)})
	}
	return problems, nil
}

// strictReversePath reports whether the filter that holds for the interface, the
// greater of its own and the host's, is the strict one.
func strictReversePath(ifname string) (bool, error) {
	all, _, err := sysctl("ipv4/conf/all/rp_filter")
	if err != nil {
		return false, err
	}
	own, _, err := sysctl("ipv4/conf/" + ifname + "/rp_filter")
	return max(all, own) == 1, err
}

// strictAnywhere reports whether the filter is strict at any interface there is,
// or will be at those to come.
func strictAnywhere() (bool, error) {
	entries, err := os.ReadDir(sysctlRoot + "ipv4/conf")
	if err != nil {
		return false, fmt.Errorf("sysctl net.ipv4.conf: %w", err)
	}
	for _, e := range entries {
		if e.Name() == "lo" {
			continue
		}
		if strict, err := strictReversePath(e.Name()); err != nil || strict {
			return strict, err
		}
	}
	return false, nil
}
