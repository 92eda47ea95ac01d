package sim

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/pool"
)

// offer is a gateway whose configuration has changed.
func (w *world) offer() {
	g := w.anyGateway()
	if !g.h.runs() || len(g.members) == 0 {
		return
	}
	m := g.members[w.rng.IntN(len(g.members))]
	o := control.OfferChange{LocalID: m.local, RequestID: w.newID(), Terms: control.Terms{MTU: uint16(1280 + w.rng.IntN(200))}}
	if w.chance(2) {
		o.Timers = m.n.timers
		o.Timers.Hello += w.between(0, 5*time.Second).Truncate(time.Second)
	}
	if w.chance(2) {
		m.offersAddresses(&o)
	}
	m.p.c.do(o)
}

// offersAddresses leases others under the offer's id, as internal/tunnel does.
func (m *member) offersAddresses(o *control.OfferChange) {
	g := m.p.g
	if m.offer != nil {
		return
	}
	l, err := m.n.pool.Lease(o.RequestID, m.p.node, g.h.wall())
	if err != nil {
		return
	}
	o.Addresses = l.Addresses
	for _, a := range m.n.pool.Gateway() {
		o.Peers = append(o.Peers, a.Addr())
	}
	m.offer = &control.Offer{RequestID: o.RequestID, Terms: o.Terms}
	g.w.stats.offers++
	g.w.ghost.offers(m, o.RequestID, l.Addresses)
}

// termsChanged: the node has taken the terms.
func (g *gateway) termsChanged(a control.TermsChanged) {
	s := a.Session
	m := g.member(s.ID)
	if m == nil {
		return
	}
	if !slices.Equal(m.addresses, s.Addresses) {
		g.rest(m, m.id, m.addresses)
		if m.offer != nil {
			m.n.pool.Free(m.offer.RequestID, g.h.wall())
		}
		m.addresses = s.Addresses
		if err := m.n.pool.Restore(pool.Lease{Session: m.id, Owner: m.p.node, Addresses: s.Addresses}); err != nil {
			broken("P4", "%s moves session %v: %v", g.h.name, m.id, err)
		}
		g.w.stats.readdressed++
	}
	if m.offer != nil && m.offer.RequestID == a.RequestID {
		m.offer = nil
	}
	m.life.Grace = s.Timers.Grace
	m.deadline()
}

// changeRefused: the session stays as it is.
func (g *gateway) changeRefused(a control.ChangeRefused) {
	if m := g.member(a.Session.ID); m != nil && m.offer != nil && m.offer.RequestID == a.Offer.RequestID {
		g.withdraw(m)
	}
}

// withdraw gives back the addresses of an offer that comes to nothing.
func (g *gateway) withdraw(m *member) {
	if m.offer == nil {
		return
	}
	g.rest(m, m.offer.RequestID, m.offer.Addresses)
	g.w.ghost.withdrawn(m.id)
	m.offer = nil
}

// rest gives back what is leased under id; the next write of the connection's
// record makes that durable.
func (g *gateway) rest(m *member, id session.ID, addresses []netip.Addr) {
	if r, ok := m.n.pool.Free(id, g.h.wall()); ok {
		m.p.rests = append(m.p.rests, rested{m.n.name, r})
	}
}

// writeRests is part of the transaction of a record.
func (p *peer) writeRests() {
	for _, r := range p.rests {
		p.g.h.disk.rests[r.network+"/"+r.Addresses[0].String()] = r
	}
	p.rests = nil
}

// restoreOffer leases again what was offered and not answered before this daemon.
func (g *gateway) restoreOffer(m *member, s control.Session) {
	if s.Offer == nil || len(s.Offer.Addresses) == 0 {
		return
	}
	if err := m.n.pool.Restore(pool.Lease{Session: s.Offer.RequestID, Owner: m.p.node, Addresses: s.Offer.Addresses}); err != nil {
		broken("P4", "%s after a restart: what was offered to session %v: %v", g.h.name, s.ID, err)
	}
	m.offer = s.Offer
}

// Change takes a gateway's terms, mostly.
func (k *linkConn) Change(s control.Session) *wire.Result {
	if k.l.n.w.chance(4) {
		return refusal(wire.CauseLocal)
	}
	if g := &k.l.n.w.ghost; g.sessions[s.ID].lost {
		g.doom(s.ID, "changed while its gateway lost it: the ticket tells of other terms")
	}
	return nil
}

// moving is what the world knows of an offer of other addresses: until it is
// settled at the gateway a session may have either.
type moving struct {
	offered []netip.Addr // nil: nothing is open
	offerID session.ID
	written bool             // it is on the gateway's disk
	whose   map[string]freed // what was taken for it
}

// has reports whether the session may have those addresses. At the node one that ends, or
// has ended at its gateway, may yet have those that it was offered last.
func (l *lived) has(addresses []netip.Addr) bool {
	return slices.Equal(addresses, l.addresses) || l.offered != nil && slices.Equal(addresses, l.offered) || (!l.alive || l.doom != "") && slices.Equal(addresses, l.newest)
}

// holds reports whether any of those addresses is the session's.
func (l *lived) holds(addresses []netip.Addr) bool {
	return slices.ContainsFunc(addresses, func(a netip.Addr) bool { return slices.Contains(l.addresses, a) || slices.Contains(l.offered, a) })
}

// unheld checks P4: nobody else has any of those addresses.
func (g *ghost) unheld(gw *gateway, id session.ID, node string, addresses []netip.Addr) {
	for _, l := range g.sessions {
		if l.alive && l.gateway == gw && l.id != id && l.holds(addresses) {
			broken("P4", "%s gives %v to %s while session %v of %s has it", gw.h.name, addresses, node, l.id, l.node)
		}
	}
}

// takes forgets that those addresses were free, and returns what it forgets.
func (g *ghost) takes(gw *gateway, n *network, addresses []netip.Addr) map[string]freed {
	was := map[string]freed{}
	for _, a := range addresses {
		key := gw.h.name + "/" + n.name + "/" + a.String()
		if f, ok := g.freed[key]; ok {
			was[key] = f
		}
		delete(g.freed, key)
	}
	return was
}

// offers begins an offer of other addresses, and checks P4.
func (g *ghost) offers(m *member, id session.ID, addresses []netip.Addr) {
	gw := m.p.g
	g.unheld(gw, m.id, m.p.node, addresses)
	g.comesBack(gw, m.n, m.p.node, addresses[0])
	l := g.sessions[m.id]
	l.newest = addresses
	l.moving = moving{offered: addresses, offerID: id, whose: g.takes(gw, m.n, addresses)}
}

// written follows an offer onto the gateway's disk, and off it: then the session
// has the one or the other. P1: it has no third.
func (g *ghost) written(s *control.Session) {
	l := g.sessions[s.ID]
	if l == nil {
		return
	}
	if !l.has(s.Addresses) {
		broken("P1", "%s writes session %v with %v, it has %v and was offered %v", l.gateway.h.name, s.ID, s.Addresses, l.addresses, l.offered)
	}
	switch open := s.Offer != nil && s.Offer.RequestID == l.offerID; {
	case l.offered == nil:
	case open:
		l.written = true
	case slices.Equal(s.Addresses, l.offered):
		g.free(l, l.addresses, true)
		l.addresses, l.moving = l.offered, moving{}
	case l.written:
		g.free(l, l.offered, true)
		l.moving = moving{}
	}
}

// withdrawn: the gateway takes back what it offered. What was written is so when
// that is.
func (g *ghost) withdrawn(id session.ID) {
	if l := g.sessions[id]; l.offered != nil && !l.written {
		g.free(l, l.offered, false)
		l.moving = moving{}
	}
}

// unwritten: a daemon was killed before its offer was on disk.
func (g *ghost) unwritten(l *lived) {
	if l.offered != nil && !l.written {
		maps.Copy(g.freed, l.whose)
		l.moving = moving{}
	}
}

// free notes that addresses rest from now on.
func (g *ghost) free(l *lived, addresses []netip.Addr, firm bool) {
	for _, a := range addresses {
		g.freed[l.gateway.h.name+"/"+l.network+"/"+a.String()] = freed{l.node, g.w.now, firm}
	}
}
