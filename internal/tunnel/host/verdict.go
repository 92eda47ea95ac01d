package host

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A verdict is what a chain does with a packet of which not everything is known.
type verdict int

const (
	passed    verdict = iota // came to the end of the chain
	accepted                 // for certain
	dropping                 // for certain
	undecided                // depends on what is not known
)

// States of a connection as nftables and iptables count them.
const (
	ctEstablished = expr.CtStateBitESTABLISHED
	ctNew         = expr.CtStateBitNEW
)

// packet is what is known of a packet that is forwarded: it is TCP, between two
// interfaces, and belongs to a connection in a state.
type packet struct {
	family  byte // AF_INET, AF_INET6: the same numbers as NFPROTO_IPV4, NFPROTO_IPV6
	in, out *netlink.LinkAttrs
	state   uint32
}

// ruleset is the packet filter of the host; rules and sets are read when first
// asked for.
type ruleset struct {
	conn   *nftables.Conn
	chains []*nftables.Chain
	rules  map[*nftables.Chain][]*nftables.Rule
	sets   map[string][]nftables.SetElement // by table family, table and name; nil: cannot be known
}

// readRuleset lists the chains; a kernel without nftables has none.
func readRuleset() (*ruleset, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	chains, err := conn.ListChains()
	if err != nil && !noFilter(err) {
		return nil, err
	}
	return &ruleset{
		conn:   conn,
		chains: chains,
		rules:  make(map[*nftables.Chain][]*nftables.Rule),
		sets:   make(map[string][]nftables.SetElement),
	}, nil
}

// forward returns the chains that every forwarded packet has to pass.
func (rs *ruleset) forward() (chains []*nftables.Chain) {
	for _, c := range rs.chains {
		if c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Type == nftables.ChainTypeFilter {
			chains = append(chains, c)
		}
	}
	return chains
}

// verdict runs a packet through a base chain.
func (rs *ruleset) verdict(chain *nftables.Chain, p packet) verdict {
	v := rs.walk(chain, p, 0)
	if v != passed {
		return v
	}
	if chain.Policy != nil && *chain.Policy == nftables.ChainPolicyDrop {
		return dropping
	}
	return accepted
}

// maxDepth is how deep chains may jump (NFT_JUMP_STACK_SIZE).
const maxDepth = 16

// walk runs a packet through the rules of a chain.
func (rs *ruleset) walk(chain *nftables.Chain, p packet, depth int) verdict {
	rules, err := rs.rulesOf(chain)
	if err != nil || depth > maxDepth {
		return undecided
	}
	for _, r := range rules {
		m := match{rs: rs, table: chain.Table, p: p}
		for _, e := range r.Exprs {
			if !m.eval(e) {
				break
			}
		}
		v, ended := rs.follow(chain.Table, m, p, depth)
		if ended {
			return v
		}
	}
	return passed
}

// follow does what a rule ended with; ended is false if the next rule has its
// turn.
func (rs *ruleset) follow(table *nftables.Table, m match, p packet, depth int) (v verdict, ended bool) {
	switch {
	case m.failed:
		return passed, false
	case m.opaque:
		return undecided, true
	case m.end == nil:
		return passed, false
	}
	v = undecided
	switch m.end.Kind {
	case expr.VerdictContinue, expr.VerdictBreak:
		return passed, false
	case expr.VerdictAccept:
		v = accepted
	case expr.VerdictDrop:
		v = dropping
	case expr.VerdictReturn:
		v = passed
	case expr.VerdictJump, expr.VerdictGoto:
		target := rs.chain(table, m.end.Chain)
		if target == nil {
			return undecided, true
		}
		v = rs.walk(target, p, depth+1)
		if v == passed && m.end.Kind == expr.VerdictJump {
			return passed, false
		}
	}
	if !m.unsure {
		return v, true
	}
	// The rule may not apply. If it would drop, later rules may still save the
	// packet, or drop it too; anything else may be what saves it.
	if v == dropping {
		return passed, false
	}
	return undecided, true
}

func (rs *ruleset) rulesOf(chain *nftables.Chain) (rules []*nftables.Rule, err error) {
	rules, ok := rs.rules[chain]
	if !ok {
		if rules, err = rs.conn.GetRules(chain.Table, chain); err != nil {
			return nil, err
		}
		rs.rules[chain] = rules
	}
	return rules, nil
}

func (rs *ruleset) chain(table *nftables.Table, name string) *nftables.Chain {
	for _, c := range rs.chains {
		if c.Name == name && c.Table.Name == table.Name && c.Table.Family == table.Family {
			return c
		}
	}
	return nil
}

// elements returns what a set holds, nil if that cannot be compared key by key.
func (rs *ruleset) elements(table *nftables.Table, name string) []nftables.SetElement {
	id := fmt.Sprint(table.Family, " ", table.Name, " ", name)
	elements, ok := rs.sets[id]
	if !ok {
		set, err := rs.conn.GetSetByName(table, name)
		if err == nil && !set.Interval && !set.Concatenation {
			elements, err = rs.conn.GetSetElements(set)
		}
		if err != nil {
			elements = nil
		}
		rs.sets[id] = elements
	}
	return elements
}

// match evaluates the expressions of one rule.
type match struct {
	rs    *ruleset
	table *nftables.Table
	p     packet
	regs  map[uint32][]byte // registers whose content is known

	failed bool          // the rule does not apply
	unsure bool          // it depends on what is not known
	opaque bool          // it ends in something we do not know
	end    *expr.Verdict // what it does, nil: nothing that matters here
}

// eval takes one expression and reports whether to go on with the next.
func (m *match) eval(e expr.Any) bool {
	switch e := e.(type) {
	case *expr.Meta:
		if !e.SourceRegister {
			m.set(e.Register, m.meta(e.Key))
		}
	case *expr.Ct:
		if e.SourceRegister {
			break
		}
		if e.Key == expr.CtKeySTATE {
			m.set(e.Register, binary.NativeEndian.AppendUint32(nil, m.p.state))
		} else {
			m.set(e.Register, nil)
		}
	case *expr.Payload:
		m.set(e.DestRegister, nil)
	case *expr.Bitwise:
		m.bitwise(e)
	case *expr.Immediate:
		m.set(e.Register, e.Data)
	case *expr.Cmp:
		m.cmp(e)
	case *expr.Lookup:
		m.lookup(e)
	case *expr.Match:
		m.xtMatch(e)
	case *expr.Verdict:
		m.end = e
	case *expr.Reject:
		m.end = &expr.Verdict{Kind: expr.VerdictDrop}
	case *expr.Target:
		m.xtTarget(e)
	case *expr.Counter, *expr.Log, *expr.FlowOffload, *expr.Notrack, *expr.Objref, *expr.NAT, *expr.Masq, *expr.Redir:
		// no condition, and no end for a packet that is forwarded
	case *expr.Queue:
		m.opaque = true
	default: // a condition of which nothing is known
		m.unsure = true
	}
	return !m.failed && m.end == nil
}

func (m *match) set(register uint32, value []byte) {
	if m.regs == nil {
		m.regs = make(map[uint32][]byte)
	}
	m.regs[register] = value
}

// meta is what is known of the packet's metadata, nil: nothing.
func (m *match) meta(key expr.MetaKey) []byte {
	switch key {
	case expr.MetaKeyIIFNAME:
		return paddedName(m.p.in.Name)
	case expr.MetaKeyOIFNAME:
		return paddedName(m.p.out.Name)
	case expr.MetaKeyIIF:
		return binary.NativeEndian.AppendUint32(nil, uint32(m.p.in.Index))
	case expr.MetaKeyOIF:
		return binary.NativeEndian.AppendUint32(nil, uint32(m.p.out.Index))
	case expr.MetaKeyNFPROTO:
		return []byte{m.p.family}
	case expr.MetaKeyL4PROTO:
		return []byte{unix.IPPROTO_TCP}
	}
	return nil
}

// apply notes the outcome of a condition.
func (m *match) apply(holds bool) { m.failed = m.failed || !holds }

func (m *match) bitwise(e *expr.Bitwise) {
	v := m.regs[e.SourceRegister]
	if len(v) == 0 || len(v) != len(e.Mask) || len(v) != len(e.Xor) {
		m.set(e.DestRegister, nil)
		return
	}
	result := make([]byte, len(v))
	for i := range v {
		result[i] = v[i]&e.Mask[i] ^ e.Xor[i]
	}
	m.set(e.DestRegister, result)
}

// cmp compares as many octets as the rule gives: a name with a wildcard at its
// end is given short.
func (m *match) cmp(e *expr.Cmp) {
	v := m.regs[e.Register]
	if len(v) < len(e.Data) {
		m.unsure = true
		return
	}
	equal := bytes.Equal(v[:len(e.Data)], e.Data)
	switch e.Op {
	case expr.CmpOpEq:
		m.apply(equal)
	case expr.CmpOpNeq:
		m.apply(!equal)
	default:
		m.unsure = true
	}
}

// lookup finds the value in a set, or what a verdict map gives for it.
func (m *match) lookup(e *expr.Lookup) {
	v := m.regs[e.SourceRegister]
	elements := m.rs.elements(m.table, e.SetName)
	if len(v) == 0 || elements == nil {
		m.unsure = true
		m.opaque = m.opaque || e.IsDestRegSet
		return
	}
	for _, el := range elements {
		if !bytes.Equal(el.Key, v) {
			continue
		}
		m.apply(!e.Invert)
		if e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT {
			m.end = mappedVerdict(el.Val)
			m.opaque = m.opaque || m.end == nil
		} else if e.IsDestRegSet {
			m.set(e.DestRegister, el.Val)
		}
		return
	}
	m.apply(e.Invert)
}

// mappedVerdict reads what a verdict map gives (linux/netfilter/nf_tables.h,
// nft_verdict_attributes), nil if it cannot.
func mappedVerdict(data []byte) *expr.Verdict {
	attrs, err := nl.ParseRouteAttr(data)
	if err != nil {
		return nil
	}
	var v *expr.Verdict
	for _, a := range attrs {
		switch {
		case a.Attr.Type == unix.NFTA_VERDICT_CODE && len(a.Value) == 4:
			v = &expr.Verdict{Kind: expr.VerdictKind(int32(binary.BigEndian.Uint32(a.Value)))}
		case a.Attr.Type == unix.NFTA_VERDICT_CHAIN && v != nil:
			v.Chain = unix.ByteSliceToString(a.Value)
		}
	}
	return v
}

// xtMatch is a condition of iptables.
func (m *match) xtMatch(e *expr.Match) {
	switch e.Name {
	case "comment":
		return
	case "conntrack":
		if state, inverted, err := conntrackState(e.Info); err == nil {
			m.apply((m.p.state&state != 0) != inverted)
			return
		}
	}
	m.unsure = true
}

var errNotState = errors.New("not a condition on the state alone")

// conntrackState returns the states that iptables' --ctstate lists.
func conntrackState(info xt.InfoAny) (state uint32, inverted bool, err error) {
	var base xt.ConntrackMtinfoBase
	switch info := info.(type) {
	case *xt.ConntrackMtinfo1:
		base, state = info.ConntrackMtinfoBase, uint32(info.StateMask)
	case *xt.ConntrackMtinfo2:
		base, state = info.ConntrackMtinfoBase, uint32(info.StateMask)
	case *xt.ConntrackMtinfo3:
		base, state = info.ConntrackMtinfoBase, uint32(info.StateMask)
	default:
		return 0, false, errNotState
	}
	const only = uint16(xt.ConntrackState | xt.ConntrackStateAlias)
	if base.MatchFlags&^only != 0 {
		return 0, false, errNotState
	}
	return state, base.InvertFlags&uint16(xt.ConntrackState) != 0, nil
}

// xtTarget is an action of iptables.
func (m *match) xtTarget(e *expr.Target) {
	switch e.Name {
	case "REJECT":
		m.end = &expr.Verdict{Kind: expr.VerdictDrop}
	case "LOG", "NFLOG", "MARK", "CONNMARK", "CT", "TCPMSS", "TRACE", "DSCP", "CLASSIFY", "SET":
		// goes on with the next rule
	default:
		m.opaque = true
	}
}
