package host

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tunneld/internal/event"
)

// maxOthers bounds the interfaces that forwardFilter tries against the tunnel: a
// host of containers has thousands.
const maxOthers = 16

// forwardFilter finds the chains of the packet filter (nftables, and iptables
// where it is a front of nftables) that drop what is forwarded from the tunnel,
// or the answers that go back into it. It reports only what is dropped for
// certain: a chain that would let such packets pass to or from one interface has
// been thought about, and one that depends on what we cannot know may be right.
func (l *Linux) forwardFilter(link netlink.Link, uses func(fam int) bool) (problems []Problem, err error) {
	rs, err := readRuleset()
	if err != nil {
		l.log.Debug("packet filter not inspected", event.KeyTunnel, link.Attrs().Name, event.KeyErr, err)
		return nil, nil
	}
	others, err := l.otherLinks(link)
	if err != nil {
		return nil, err
	}
	for _, chain := range rs.forward() {
		for _, fam := range familiesOf(chain.Table.Family) {
			if !uses(fam) {
				continue
			}
			in := rs.drops(chain, fam, link, others, true)
			out := rs.drops(chain, fam, link, others, false)
			if in || out {
				problems = append(problems, filterProblem(chain, link.Attrs().Name, in))
				break
			}
		}
	}
	return problems, nil
}

// drops reports whether the chain drops packets between the link and others and
// surely lets none pass: new connections that come in by the link, or answers
// that go out by it.
func (rs *ruleset) drops(chain *nftables.Chain, fam int, link netlink.Link, others []netlink.Link, in bool) bool {
	dropped := false
	for _, other := range others {
		p := packet{family: byte(fam), in: link.Attrs(), out: other.Attrs(), state: ctNew}
		if !in {
			p.in, p.out, p.state = p.out, p.in, ctEstablished
		}
		switch rs.verdict(chain, p) {
		case accepted:
			return false
		case dropping:
			dropped = true
		}
	}
	return dropped
}

// otherLinks are the interfaces that packets of the tunnel may be forwarded to.
func (l *Linux) otherLinks(link netlink.Link) ([]netlink.Link, error) {
	links, err := dump(l.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	links = slices.DeleteFunc(links, func(o netlink.Link) bool {
		a := o.Attrs()
		return a.Index == link.Attrs().Index || a.Name == "lo" || a.MasterIndex != 0 || !isUp(o)
	})
	return links[:min(len(links), maxOthers)], nil
}

// familiesOf maps a table's family to those of its packets.
func familiesOf(f nftables.TableFamily) []int {
	switch f {
	case nftables.TableFamilyINet:
		return families[:]
	case nftables.TableFamilyIPv4:
		return []int{unix.AF_INET}
	case nftables.TableFamilyIPv6:
		return []int{unix.AF_INET6}
	}
	return nil
}

// filterProblem names the chain and the commands that let the tunnel's packets
// pass: rules at its head, one for each direction.
func filterProblem(chain *nftables.Chain, ifname string, in bool) Problem {
	fam := map[nftables.TableFamily]string{
		nftables.TableFamilyINet: "inet",
		nftables.TableFamilyIPv4: "ip",
		nftables.TableFamilyIPv6: "ip6",
	}[chain.Table.Family]
	where := strings.Join([]string{fam, chain.Table.Name, chain.Name}, " ")
	what := "what is forwarded from " + ifname
	mended := fmt.Sprintf(`nft insert rule %s oifname "%s" accept`, where, ifname)
	if in {
		mended = fmt.Sprintf(`nft insert rule %s iifname "%s" accept && `, where, ifname) + mended
	} else {
		what = "the answers forwarded to " + ifname
	}
	return Problem{What: fmt.Sprintf("the packet filter drops %s (chain %s)", what, where), Mended: mended}
}
