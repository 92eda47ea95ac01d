package sim

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// ghost sees everything and takes part in nothing: it holds what was promised
// against what happens.
type ghost struct {
	w        *world
	sessions map[session.ID]*lived
	answered map[string]uint64 // highest resume attempt a gateway's connection has answered
	freed    map[string]freed  // by gateway, network and address
}

// lived is one session as the world knows it.
type lived struct {
	id        session.ID
	gateway   *gateway
	node      string
	network   string
	addresses []netip.Addr
	nodeKey   [32]byte
	psk       map[uint32]secret.Value // of each key epoch that either end has used
	alive     bool                    // it has its address
	up        bool                    // packets could flow: it may end only for a reason
	doom      string                  // the reason
	lost      bool                    // with all that its gateway had of it, and not rebuilt
	over      bool                    // its end was told of
	durable   bool                    // it was on disk
	toldIn    int                     // life of the gateway's daemon that was told of the end
	was       map[string]freed        // what it took its address from
	newest    []netip.Addr            // that it was offered
	truth
	moving
}

// freed is who had an address, and until when.
type freed struct {
	owner string
	at    time.Duration
	firm  bool // it was on disk: the owner may have been told
}

func (g *ghost) init() {
	g.sessions, g.answered, g.freed = map[session.ID]*lived{}, map[string]uint64{}, map[string]freed{}
}

// doom notes why a session may end from now on.
func (g *ghost) doom(id session.ID, why string) {
	if l := g.sessions[id]; l != nil && l.doom == "" {
		l.doom = why
		g.w.logf("session %v may end: %s", id, why)
	}
}

func (g *ghost) doomAll(c *conn, why string) {
	for _, s := range c.m.Sessions() {
		g.doom(s.ID, why)
	}
}

// watch steps a machine and checks the step.
func (g *ghost) watch(c *conn, ev control.Event) []control.Action {
	before, where := c.m.State(), c.situation()
	g.w.stats.pairs[pair{where, c.eventName(ev)}]++
	g.excuses(c, ev)
	grace := c.m.Timers().Grace
	stale := c.isStale(ev)
	repeated := c.isRepeated(ev)
	out := c.m.Step(ev)
	if g.w.trace != nil {
		g.w.logf("%s/%08x %s: %s %s", c.h.name, c.id, where, c.eventName(ev), describe(ev))
		for _, a := range out {
			g.w.logf("%40s %s", "", describeAction(a))
		}
	}
	if stale && len(out) > 0 {
		broken("fencing", "%s acts on %s from a transport that was given up: %s", c.h.name, describe(ev), describeAction(out[0]))
	}
	if repeated {
		g.onlyAcknowledged(c, ev, out)
	}
	g.hears(c, ev, out)
	c.follow(ev, out)
	g.clock(c, before, grace)
	return out
}

// excuses notes what gives sessions a reason to end.
func (g *ghost) excuses(c *conn, ev control.Event) {
	switch ev := ev.(type) {
	case control.CloseSession:
		for _, s := range c.m.Sessions() {
			if s.LocalID == ev.LocalID {
				g.doom(s.ID, "closed by "+c.h.name)
			}
		}
	case control.Stop:
		g.doomAll(c, "stopped by "+c.h.name)
	case control.Expired:
		if ev.Timer == control.TimerGrace && c.suspended >= 0 {
			if early := c.remaining - (g.w.now - c.suspended); early > 0 && !c.stolen {
				broken("P1", "%s ends its grace %v early", c.h.name, early)
			}
			g.doomAll(c, "the grace of "+c.h.name+" is over")
		}
	case control.SaveFailed:
		if _, denied := ev.Err.(*control.Denied); denied {
			g.doomAll(c, "revoked")
		}
	}
}

// onlyAcknowledged checks P3: a message that was journalled before has no effect.
func (g *ghost) onlyAcknowledged(c *conn, ev control.Event, out []control.Action) {
	for _, a := range out {
		switch a := a.(type) {
		case control.Arm:
		case control.Save: // what the peer has journalled is forgotten
		case control.Send:
			if a.Packet.Message.Type() == wire.TypeACK {
				continue
			}
			broken("P3", "%s answers a repeated %s with %v", c.h.name, describe(ev), a.Packet.Message.Type())
		default:
			broken("P3", "%s acts again on a repeated %s: %s", c.h.name, describe(ev), describeAction(a))
		}
	}
}

// clock checks that suspension ends with the grace.
func (g *ghost) clock(c *conn, before session.State, grace time.Duration) {
	if c.m.State() != session.Suspended && before != session.Suspended {
		return
	}
	if c.suspended >= 0 {
		if late := g.w.now - c.suspended - c.remaining - c.slack; late > time.Second && before == session.Suspended && c.m.State() != session.Closed {
			broken("P5", "%s has been suspended for %v longer than its grace of %v", c.h.name, late, c.remaining)
		}
	}
	switch {
	case c.m.State() != session.Suspended:
		c.suspended = -1
	case c.suspended < 0:
		c.suspended, c.remaining, c.slack = g.w.now, grace, 0
	}
}

// sends checks what leaves: P3, nothing tells of what is not on disk; P5,
// nothing is given to a node without right.
func (g *ghost) sends(c *conn, a control.Send) {
	p, rec := a.Packet, c.h.disk.record(c.id)
	switch m := p.Message.(type) {
	case *wire.StopCCN:
		return
	case *wire.SCCRQ:
		if m.Recovery != nil && (rec == nil || rec.Attempt < m.Proof.Attempt) {
			broken("P3", "%s sends resume attempt %d before it is on disk", c.h.name, m.Proof.Attempt)
		}
		return
	case *wire.SCCRP:
		g.answers(c, a, m, rec)
	case *wire.SCCCN:
		if rec == nil || rec.Generation != c.m.Record().Generation {
			broken("P3", "%s sends SCCCN before its keys are on disk", c.h.name)
		}
		return
	default:
		if rec == nil || int16(rec.Nr-p.Nr) < 0 {
			broken("P3", "%s acknowledges all before %d with %v, on disk is all before %d", c.h.name, p.Nr, p.Message.Type(), nrOf(rec))
		}
		if numbered(p.Message.Type()) && int16(rec.Ns-p.Ns) <= 0 {
			broken("P3", "%s sends %v with number %d before it is on disk", c.h.name, p.Message.Type(), p.Ns)
		}
	}
	if c.role == control.Responder && c.h.disk.revoked[c.end(a.Transport).peer().h.id] {
		switch p.Message.Type() {
		case wire.TypeSCCRP, wire.TypeICRP, wire.TypeSLI, wire.TypeCertReply:
			broken("P5", "%s gives %v to a node that was revoked", c.h.name, p.Message.Type())
		}
	}
}

func nrOf(rec *control.Record) uint16 {
	if rec == nil {
		return 0
	}
	return rec.Nr
}

// answers checks the answer to a request: rights were looked at, and of all
// attempts to resume only a higher one than before is believed.
func (g *ghost) answers(c *conn, a control.Send, m *wire.SCCRP, rec *control.Record) {
	if !c.wanted[a.Transport] {
		broken("P5", "%s answers a request without a look at the rights of its sender", c.h.name)
	}
	if m.Proof == nil {
		return
	}
	if rec == nil || rec.Attempt < m.Proof.Attempt || rec.NextKey.IsZero() {
		broken("P3", "%s answers resume attempt %d before it is on disk", c.h.name, m.Proof.Attempt)
	}
	key := fmt.Sprintf("%s/%08x", c.h.name, c.id)
	if m.Proof.Attempt <= g.answered[key] {
		broken("one outcome", "%s answers resume attempt %d after %d", c.h.name, m.Proof.Attempt, g.answered[key])
	}
	g.answered[key] = m.Proof.Attempt
	if why := c.end(a.Transport).peer().h.stolen; why != "" {
		broken("one outcome", "%s believes %s", c.h.name, why)
	}
}

// numbered as in docs/protocol.md, "Numbers".
func numbered(t wire.MessageType) bool {
	return !slices.Contains([]wire.MessageType{wire.TypeHello, wire.TypeACK, wire.TypeWEN, wire.TypeFSQ, wire.TypeFSR, wire.TypeDrain}, t)
}

// rests checks a connection that has nothing to do.
func (g *ghost) rests(c *conn) {
	for _, e := range c.ends {
		if e.l.id != c.cur && e.l.id != c.next {
			broken("fencing", "%s keeps transport %d beside %d and %d", c.h.name, e.l.id, c.cur, c.next)
		}
	}
	for _, s := range c.m.Sessions() {
		g.same(c, &s)
	}
	g.ends(c)
}

// same checks P1 for one session at one end: it is what it was.
func (g *ghost) same(c *conn, s *control.Session) {
	if s.ID.IsZero() || c.stolen { // a copy is of a time that is gone
		return
	}
	l := g.sessions[s.ID]
	if l == nil {
		broken("P1", "%s has session %v, which nobody granted", c.h.name, s.ID)
	}
	key := s.PublicKey
	if c.role == control.Responder {
		key = s.PeerKey
	}
	if s.Network != l.network || !l.has(s.Addresses) || key != l.nodeKey {
		broken("P1", "%s has session %v with %v in %q, was granted with %v in %q, or other keys", c.h.name, s.ID, s.Addresses, s.Network, l.addresses, l.network)
	}
	if was, ok := l.psk[s.KeyEpoch]; s.PresharedKey.IsZero() || ok && !was.Equal(s.PresharedKey) {
		broken("P1", "%s uses another key in epoch %d of session %v than was agreed", c.h.name, s.KeyEpoch, s.ID)
	}
	l.psk[s.KeyEpoch] = s.PresharedKey
}

// ends checks that both ends of a connection agree when nothing is under way.
func (g *ghost) ends(c *conn) {
	e := c.end(c.cur)
	if e == nil || c.m.State() != session.Established || c.m.Pending() > 0 || len(c.inbox) > 0 {
		return
	}
	p := e.peer()
	o := p.c
	if o == nil || o.dead || o.cur != c.cur || !o.idle() || o.m.State() != session.Established || o.m.Pending() > 0 ||
		!e.l.empty() || e.severed || p.severed || e.closed || p.closed || e.dead || p.dead {
		return
	}
	if a, b := c.m.Record(), o.m.Record(); a.Serial != b.Serial || a.Serial == 0 || a.Major > a.Serial || b.Major > b.Serial {
		broken("equal", "%s stands at checkpoint %d (major %d) and %s at %d (major %d) when all is quiet", c.h.name, a.Serial, a.Major, o.h.name, b.Serial, b.Major)
	}
	mine, theirs := known(c), known(o)
	if len(mine) != len(theirs) {
		broken("equal", "%s and %s have %d and %d sessions when all is quiet", c.h.name, o.h.name, len(mine), len(theirs))
	}
	for _, s := range mine {
		i := slices.IndexFunc(theirs, func(t control.Session) bool { return t.ID == s.ID })
		if i < 0 {
			broken("equal", "%s has session %v (%v) and %s has not", c.h.name, s.ID, s.State, o.h.name)
		}
		if t := theirs[i]; s.State != session.Established || t.State != session.Established || s.LocalID != t.RemoteID || s.RemoteID != t.LocalID ||
			!slices.Equal(s.Addresses, t.Addresses) || !slices.Equal(s.Peers, t.Peers) ||
			!slices.Equal(s.Routes, t.Routes) || s.Timers != t.Timers || s.Held != t.Held || s.MTU != t.MTU || s.Lifetime != t.Lifetime || s.Expires != t.Expires || s.Offer != nil || t.Offer != nil || s.KeyEpoch != t.KeyEpoch ||
			!s.PresharedKey.Equal(t.PresharedKey) || !s.NextPresharedKey.Equal(t.NextPresharedKey) {
			broken("equal", "session %v when all is quiet: %s has %v, routes %v, key epoch %d; %s has %v, routes %v, key epoch %d",
				s.ID, c.h.name, s.State, s.Routes, s.KeyEpoch, o.h.name, t.State, t.Routes, t.KeyEpoch)
		}
	}
}

// known are the sessions of a connection, but for those that the node has yet to
// claim.
func known(c *conn) []control.Session {
	return slices.DeleteFunc(c.m.Sessions(), func(s control.Session) bool { return s.Rebuild })
}

// granted begins the life of a session, and checks P4.
func (g *ghost) granted(gw *gateway, n *network, id session.ID, node string, addresses []netip.Addr, key [32]byte) {
	if gw.drain != nil {
		broken("drain", "%s begins a session with %s and is about to go", gw.h.name, node)
	}
	g.unheld(gw, id, node, addresses)
	g.comesBack(gw, n, node, addresses[0])
	was := g.takes(gw, n, addresses)
	g.w.stats.sessions++
	g.sessions[id] = &lived{id: id, gateway: gw, node: node, network: n.name, addresses: addresses, nodeKey: key, alive: true, psk: map[uint32]secret.Value{},
		was:   was,
		truth: truth{began: g.w.now, provenAt: g.w.now, refreshedAt: g.w.now}}
}

// comesBack checks the second half of P4: a node gets back what it had, and
// nobody else gets it before it has rested.
func (g *ghost) comesBack(gw *gateway, n *network, node string, a netip.Addr) {
	at := func(a netip.Addr) string { return gw.h.name + "/" + n.name + "/" + a.String() }
	if f, ok := g.freed[at(a)]; ok && f.firm && f.owner != node && g.w.now-f.at < n.cooloff-time.Second && !gw.h.stepped {
		broken("P4", "%s gives %v to %s, %v after %s had it", gw.h.name, a, node, g.w.now-f.at, f.owner)
	}
	if f, ok := g.freed[at(a)]; ok && f.owner == node {
		return
	}
	for _, b := range n.all {
		if f, ok := g.freed[at(b)]; ok && f.firm && f.owner == node && !gw.h.stepped {
			broken("P4", "%s gives %v to %s, which had %v before", gw.h.name, a, node, b)
		}
	}
}

// keyed completes what a session has for life.
func (g *ghost) keyed(s control.Session) { g.sessions[s.ID].psk[s.KeyEpoch] = s.PresharedKey }

// release notes that a session has its address no more.
func (g *ghost) release(id session.ID, why string) {
	l := g.sessions[id]
	if l == nil || !l.alive {
		return
	}
	l.alive = false
	for _, mine := range [][]netip.Addr{l.addresses, l.offered} {
		taken := false // replaced, and remembered too late
		for _, o := range g.sessions {
			taken = taken || o.alive && o.gateway == l.gateway && o.network == l.network && o.holds(mine)
		}
		if !taken {
			g.free(l, mine, l.durable)
		}
	}
	l.moving = moving{}
	g.w.logf("session %v has no address any more: %s", id, why)
}

// ended checks the notice of an end: P1, there was a reason; P7, it is the
// first.
func (g *ghost) ended(c *conn, s control.Session, res wire.Result) {
	l := g.sessions[s.ID]
	if l == nil {
		return
	}
	if l.up && l.doom == "" {
		broken("P1", "%s ends session %v without a reason of ours: %s", c.h.name, s.ID, res.Describe(wire.TypeCDN))
	}
	if c.role == control.Responder {
		l.over = true
		if l.toldIn == c.h.life {
			broken("P7", "%s is told twice of the end of session %v", c.h.name, s.ID)
		}
		l.toldIn = c.h.life
	}
}

// gone notes the end of a session on a gateway's disk: P7, it is the first, and
// P1, there was a reason.
func (g *ghost) gone(c *conn, id session.ID, already bool) {
	l := g.sessions[id]
	if l == nil {
		broken("P7", "%s ends session %v in the record, which nobody granted", c.h.name, id)
	}
	if already {
		broken("P7", "%s ends session %v in the record for the second time", c.h.name, id)
	}
	if l.up && l.doom == "" {
		broken("P1", "session %v is gone from the disk of %s without a reason of ours", id, c.h.name)
	}
	l.over = true
	g.release(id, "ended on disk")
	g.w.stats.ends++
}

// restarted notes which sessions of a gateway have their addresses after a
// restart: those on its disk.
func (g *ghost) restarted(gw *gateway) {
	alive := map[session.ID]bool{}
	for _, r := range gw.h.disk.rows {
		for _, s := range r.rec.Sessions {
			alive[s.ID] = true
		}
	}
	for _, l := range g.sessions {
		if l.gateway != gw {
			continue
		}
		if l.alive && !alive[l.id] && !l.durable { // it never came to be
			maps.Copy(g.freed, l.was)
		}
		l.alive = alive[l.id]
		g.unwritten(l)
		if l.alive { // its end was not written
			g.takes(gw, gw.network(l.network), append(slices.Clone(l.addresses), l.offered...))
		}
		l.blind = l.blind || gw.h.stepped && !l.aged
		l.seenFrom = g.w.now
		if !l.alive && l.up && l.doom == "" && !l.lost {
			broken("P1", "session %v did not outlive the restart of %s", l.id, gw.h.name)
		}
	}
}

// orphaned is a session that a restarted gateway could not take back.
func (g *ghost) orphaned(gw *gateway, id session.ID, err error) {
	if l := g.sessions[id]; l.doom == "" {
		broken("P4", "%s after a restart: %v", gw.h.name, err)
	}
	g.release(id, "orphaned")
}
