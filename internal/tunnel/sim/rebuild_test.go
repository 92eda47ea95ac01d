package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/pool"
)

// book is what a gateway keeps outside its state directory: which tickets count.
// Revocations and rights are kept with the disk.
type book struct {
	serial  uint64
	tickets map[string]ticket
	lowest  map[session.ID]uint64
	last    map[session.ID]uint64
	used    map[string]bool
	ended   map[session.ID]bool
}

// ticket is what one says; here it is not sealed.
type ticket struct {
	serial    uint64
	id        session.ID
	node      string
	nodeID    session.ID
	network   string
	peerKey   [32]byte
	epoch     uint32
	began     time.Time
	extended  time.Duration
	addresses []netip.Addr
	resumes   uint64
	until     time.Time
}

func newBook() *book {
	return &book{tickets: map[string]ticket{}, lowest: map[session.ID]uint64{}, last: map[session.ID]uint64{}, used: map[string]bool{}, ended: map[session.ID]bool{}}
}

// Ticket gives a session its next ticket (control.TicketHandler).
func (p *peer) Ticket(s control.Session) []byte {
	b := p.g.book
	b.serial++
	name := fmt.Sprintf("ticket %d of %s", b.serial, p.g.h.name)
	b.tickets[name] = ticket{b.serial, s.ID, p.node, p.nodeID, s.Network, s.PeerKey, s.KeyEpoch, s.Began, s.Extended, s.Addresses, s.Resumes, p.g.h.wall().Add(s.Timers.Grace)}
	b.lowest[s.ID], b.last[s.ID] = max(b.last[s.ID], b.lowest[s.ID]), b.serial
	return []byte(name)
}

// rebuild decides as that of internal/tunnel does.
func (p *peer) rebuild(q *wire.ICRQ) (control.Grant, *wire.Result) {
	g, d, b := p.g, p.g.h.disk, p.g.book
	p.serial = d.serial
	t, ok := b.tickets[string(q.Ticket)]
	refuse := func(c wire.Cause) (control.Grant, *wire.Result) {
		if c.Advice() != wire.RetryLater {
			g.w.ghost.doom(t.id, fmt.Sprintf("%s refuses its ticket: %v", g.h.name, c))
		}
		return control.Grant{}, refusal(c)
	}
	n := g.network(t.network)
	switch {
	case !ok || t.nodeID != p.nodeID || q.PublicKey != t.peerKey || q.RemoteEnd != t.network:
		return refuse(wire.CauseTicketForeign)
	case b.used[string(q.Ticket)] || g.member(t.id) != nil:
		return refuse(wire.CauseTicketUsed)
	case b.ended[t.id] || t.serial < b.lowest[t.id] || !g.h.wall().Before(t.until) || q.KeyEpoch <= t.epoch,
		slices.ContainsFunc(g.members, func(m *member) bool { return m.n == n && m.p.nodeID == p.nodeID }):
		return refuse(wire.CauseTicketOld)
	case n.terms.Absolute > 0 && g.h.wall().Sub(t.began) >= n.terms.Absolute+t.extended:
		return refuse(wire.CauseAbsolute)
	case n.terms.Reauth > 0 && g.w.instant().Since(p.proven) >= n.terms.Reauth:
		return refuse(wire.CauseReauth)
	case d.revoked[p.nodeID]:
		return refuse(wire.CauseRevoked)
	case !p.may(t.network):
		return refuse(wire.CauseNetworkRight)
	case !g.w.healed && g.w.chance(8):
		return refuse(wire.CauseBusy)
	}
	expires, r := n.policy.Answer(q.Expires)
	if r != nil {
		return control.Grant{}, r
	}
	if n.pool.Claim(pool.Lease{Session: t.id, Owner: p.node, Addresses: t.addresses}, g.h.wall()) != nil {
		return refuse(wire.CauseTicketLeased)
	}
	g.w.ghost.rebuilt(g, t)
	g.rebuilding[t.id] = string(q.Ticket)
	grant := g.grant(n, t.id, t.addresses)
	grant.Expires = expires
	grant.KeyEpoch, grant.Resumes, grant.Began, grant.Extended = q.KeyEpoch, t.resumes+1, t.began, t.extended
	if a := &grant.Lifetime.Absolute; *a > 0 {
		*a = max(time.Second, *a+t.extended-g.h.wall().Sub(t.began))
	}
	return grant, nil
}

// rebuilt spends the ticket of a session that is set up by it.
func (g *gateway) rebuilt(id session.ID) {
	if name, ok := g.rebuilding[id]; ok {
		g.book.used[name] = true
		g.book.lowest[id] = g.book.tickets[name].serial + 1
		delete(g.rebuilding, id)
	}
}

// loseState takes a gateway's state directory away. A session whose node has a
// ticket has no reason to end.
func (w *world) loseState() {
	g := w.anyGateway()
	g.h.dies(w.chance(2))
	g.h.life++ // what was written and not synced is lost as well
	d := g.h.disk
	for _, r := range d.rows {
		for _, s := range r.rec.Sessions {
			if !w.hasTicket(g, s) {
				w.ghost.doom(s.ID, "lost by "+g.h.name)
			}
		}
	}
	w.ghost.lost(g)
	d.rows, d.rests, d.holders, d.ended = nil, map[string]rested{}, map[string]session.ID{}, map[session.ID]bool{}
	for _, t := range g.book.tickets {
		if !g.book.ended[t.id] && t.serial == g.book.last[t.id] { // rests for its node
			d.rests[t.network+"/"+t.addresses[0].String()] = rested{t.network, pool.Rest{Owner: t.node, Addresses: t.addresses, FreedAt: g.h.wall()}}
		}
	}
	w.stats.losses++
	w.logf("%s has lost its state directory", g.h.name)
}

// hasTicket reports whether a node has a ticket of a session on its disk, and
// wants nothing but to go on with it.
func (w *world) hasTicket(g *gateway, at control.Session) bool {
	for _, n := range w.nodes {
		for _, c := range n.h.conns { // what is being written down
			for _, s := range c.m.Sessions() {
				if s.ID == at.ID && !slices.Equal(s.Addresses, at.Addresses) {
					return false
				}
			}
		}
		for _, r := range n.h.disk.rows {
			for _, s := range r.rec.Sessions {
				if s.ID == at.ID {
					t := g.book.tickets[string(s.Ticket.Reveal())]
					if g.book.used[string(s.Ticket.Reveal())] || t.serial < g.book.lowest[at.ID] {
						return false // lost again before the node has the next one
					}
					return (s.State == session.Established || s.Rebuild) && slices.Equal(t.addresses, s.Addresses) && slices.Equal(t.addresses, at.Addresses)
				}
			}
		}
	}
	return false
}

// lost: nothing is left at the gateway of what it had.
func (g *ghost) lost(gw *gateway) {
	for _, l := range g.sessions {
		if l.gateway == gw {
			l.alive, l.lost = false, true
		}
	}
	for key, f := range g.freed {
		f.firm = false
		g.freed[key] = f
	}
}

// rebuilt checks a session that comes back by its ticket: it is the one that was
// lost, and takes nobody's address.
func (g *ghost) rebuilt(gw *gateway, t ticket) {
	l := g.sessions[t.id]
	switch {
	case l == nil || l.over:
		broken("raised", "%s rebuilds session %v, which has ended", gw.h.name, t.id)
	case !slices.Equal(t.addresses, l.addresses) || t.peerKey != l.nodeKey || t.network != l.network:
		broken("P1", "%s rebuilds session %v with %v, it had %v", gw.h.name, t.id, t.addresses, l.addresses)
	}
	g.unheld(gw, t.id, t.node, t.addresses)
	g.takes(gw, gw.network(l.network), t.addresses)
	l.moving = moving{}
	l.provenAt, l.refreshedAt, l.seenFrom, l.blind = g.w.now, g.w.now, g.w.now, l.blind || gw.h.stepped
	l.alive, l.toldIn = true, 0 // it is lost until it is on disk
	g.w.stats.rebuilds++
}

var _ control.TicketHandler = (*peer)(nil)
