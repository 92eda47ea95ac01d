package host

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Our part of the packet filter is one table that nobody else writes:
//
//	table inet tunneld {
//		chain mark {			while default routes go through a tunnel
//			type filter hook prerouting priority mangle
//			socket mark 0x746e meta mark set 0x746e
//		}
//		chain masquerade {
//			type nat hook postrouting priority srcnat
//			ip saddr 10.77.0.0/16 oifname != "tnl0" oifname != "lo" masquerade comment "tnl0 10.77.0.0/16"
//		}
//	}
//
// It is read back before it is changed, since it may be the work of a process
// that was killed, and then written anew in one transaction.
const (
	filterTable     = "tunneld"
	chainMark       = "mark"
	chainMasquerade = "masquerade"
)

// masquerade is one rule of chainMasquerade; its comment is its String.
type masquerade struct {
	ifname string
	inside netip.Prefix
}

func (m masquerade) String() string { return m.ifname + " " + m.inside.String() }

// filter is what our table holds.
type filter struct {
	marking    bool
	masquerade []masquerade // sorted
}

// SetMasquerade implements [Host].
func (l *Linux) SetMasquerade(ifname string, inside []netip.Prefix) error {
	return l.do(func() error {
		return l.changeFilter("masquerade for "+ifname, func(f *filter) {
			f.remove(func(name string) bool { return name == ifname })
			for _, p := range inside {
				f.masquerade = append(f.masquerade, masquerade{ifname, p.Masked()})
			}
		})
	})
}

// setMarking puts chainMark into the table, or takes it out.
func (l *Linux) setMarking(on bool) error {
	return l.changeFilter("marking", func(f *filter) { f.marking = on })
}

// remove drops the rules of interfaces for which gone answers true.
func (f *filter) remove(gone func(ifname string) bool) {
	f.masquerade = slices.DeleteFunc(f.masquerade, func(m masquerade) bool { return gone(m.ifname) })
}

// changeFilter reads our table, lets change edit it, and writes it if it is
// another one then. What names the change in errors.
func (l *Linux) changeFilter(what string, change func(*filter)) error {
	before, err := readFilter()
	if err != nil {
		return fmt.Errorf("%s: reading the packet filter: %w", what, err)
	}
	after := filter{before.marking, slices.Clone(before.masquerade)}
	change(&after)
	slices.SortFunc(after.masquerade, func(a, b masquerade) int { return cmp.Compare(a.String(), b.String()) })
	after.masquerade = slices.Compact(after.masquerade)
	if after.marking == before.marking && slices.Equal(after.masquerade, before.masquerade) {
		return nil
	}
	if err := writeFilter(after); err != nil {
		return fmt.Errorf("%s: changing the packet filter (kernel modules nf_tables, nft_masq, nft_socket): %w", what, err)
	}
	return nil
}

// noFilter reports whether err says that the kernel has no nftables at all.
func noFilter(err error) bool {
	for _, no := range [...]error{unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EOPNOTSUPP, unix.EINVAL} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

// readFilter returns what our table holds; nothing if there is none, or no
// nftables to hold one.
func readFilter() (f filter, err error) {
	conn, err := nftables.New()
	if err != nil {
		return f, err
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if noFilter(err) {
		return f, nil
	}
	if err != nil {
		return f, err
	}
	for _, c := range chains {
		if c.Table.Name != filterTable {
			continue
		}
		switch c.Name {
		case chainMark:
			f.marking = true
		case chainMasquerade:
			rules, err := conn.GetRules(c.Table, c)
			if err != nil {
				return f, err
			}
			for _, r := range rules {
				if m, ok := parseMasquerade(r.UserData); ok {
					f.masquerade = append(f.masquerade, m)
				}
			}
		}
	}
	return f, nil
}

// parseMasquerade reads a rule's comment.
func parseMasquerade(data []byte) (m masquerade, ok bool) {
	comment, ok := userdata.GetString(data, userdata.TypeComment)
	if !ok {
		return m, false
	}
	ifname, inside, ok := strings.Cut(comment, " ")
	if !ok {
		return m, false
	}
	p, err := netip.ParsePrefix(inside)
	return masquerade{ifname, p}, err == nil
}

// writeFilter replaces our table, in one transaction.
func writeFilter(f filter) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: filterTable, Family: nftables.TableFamilyINet}
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	if f.marking || len(f.masquerade) > 0 {
		conn.AddTable(table)
	}
	if f.marking {
		chain := conn.AddChain(&nftables.Chain{
			Name:     chainMark,
			Table:    table,
			Type:     nftables.ChainTypeFilter,
			Hooknum:  nftables.ChainHookPrerouting,
			Priority: nftables.ChainPriorityMangle,
		})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: markExprs()})
	}
	if len(f.masquerade) > 0 {
		chain := conn.AddChain(&nftables.Chain{
			Name:     chainMasquerade,
			Table:    table,
			Type:     nftables.ChainTypeNAT,
			Hooknum:  nftables.ChainHookPostrouting,
			Priority: nftables.ChainPriorityNATSource,
		})
		for _, m := range f.masquerade {
			conn.AddRule(&nftables.Rule{
				Table:    table,
				Chain:    chain,
				Exprs:    m.exprs(),
				UserData: userdata.AppendString(nil, userdata.TypeComment, m.String()),
			})
		}
	}
	return conn.Flush()
}

// markExprs is "socket mark 0x746e meta mark set 0x746e".
func markExprs() []expr.Any {
	return []expr.Any{
		&expr.Socket{Key: expr.SocketKeyMark, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(Mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
}

// exprs is `ip saddr INSIDE oifname != IFNAME oifname != "lo" masquerade`.
func (m masquerade) exprs() []expr.Any {
	proto, offset, length := byte(unix.NFPROTO_IPV4), uint32(12), uint32(4) // RFC 791, section 3.1
	if m.inside.Addr().Is6() {
		proto, offset, length = unix.NFPROTO_IPV6, 8, 16 // RFC 8200, section 3
	}
	n := ipNet(m.inside)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: n.Mask, Xor: make([]byte, length)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: n.IP},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: paddedName(m.ifname)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: paddedName("lo")},
		&expr.Masq{},
	}
}

// paddedName is an interface's name as nftables compares it.
func paddedName(ifname string) []byte {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, ifname)
	return name
}

// sweepFilter takes out the rules of ifname and of interfaces that are gone.
func (l *Linux) sweepFilter(ifname string) error {
	names, err := l.linkNames()
	if err != nil {
		return err
	}
	exists := make(map[string]bool, len(names))
	for _, n := range names {
		exists[n] = true
	}
	return l.changeFilter("clean-up", func(f *filter) {
		f.remove(func(name string) bool { return name == ifname || !exists[name] })
	})
}
