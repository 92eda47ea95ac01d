package tunnel

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/pool"
)

// What a gateway gives its sessions changes with its configuration, and the
// routes with the other nodes of the network. Each session is offered what it
// does not have, one thing after the other: docs/protocol.md, "Changes of a live
// session".

// termKind is what an offer is about.
type termKind uint8

// The kinds, in the order in which they are offered.
const (
	addressTerms termKind = iota
	mtuTerms
	timerTerms
	routeTerms
	numTermKinds
)

// kindOf is the kind of terms, of which an offer of ours has one.
func kindOf(t control.Terms) termKind {
	switch {
	case len(t.Addresses) > 0:
		return addressTerms
	case t.MTU != 0:
		return mtuTerms
	case t.HasRoutes:
		return routeTerms
	}
	return timerTerms
}

// announceLater offers the nodes of a network its present routes, soon.
func (g *gateway) announceLater(n *network) {
	g.m.chores.add("routes "+n.cfg.Name, func(ctx context.Context) { g.announce(ctx, n) })
}

// announce offers every session of a network that has other routes those that
// there are now. One that is suspended is offered them when it is back.
func (g *gateway) announce(ctx context.Context, n *network) {
	behind := map[*peerConn]bool{}
	g.mu.Lock()
	for mb := range g.members.byNetwork[n] {
		if mb.state == session.Established && !samePrefixes(n.routesFor(mb), mb.terms.Routes) {
			behind[mb.conn] = true
		}
	}
	g.mu.Unlock()
	for p := range behind {
		p.offerTerms(ctx)
	}
}

// offerLater has the sessions of the connection offered what they do not have.
func (p *peerConn) offerLater() {
	p.g.m.chores.add("terms "+connectionKey(p.id), p.offerTerms)
}

// offerTerms offers each session of the connection the next thing that it does
// not have.
func (p *peerConn) offerTerms(ctx context.Context) {
	var offers []control.OfferChange
	p.g.mu.Lock()
	for _, mb := range p.g.members.byConn.list(p) {
		if o := mb.nextOfferLocked(); o != nil {
			offers = append(offers, *o)
		}
	}
	p.g.mu.Unlock()
	for _, o := range offers {
		p.Do(ctx, o)
	}
}

// nextOfferLocked is what a session is to be offered next; nil: nothing, or not
// before the offer that is open is answered. What its node has refused it would
// refuse again.
func (mb *member) nextOfferLocked() *control.OfferChange {
	if mb.offer != nil || mb.state != session.Established {
		return nil
	}
	request := session.NewID()
	t := mb.missingLocked(request)
	if !t.Any() {
		return nil
	}
	mb.network.g.offeredLocked(mb, &control.Offer{RequestID: request, Terms: t})
	return &control.OfferChange{LocalID: mb.local, Terms: t, RequestID: request}
}

// missingLocked is one thing that the session has not as the network gives it
// now. New addresses are leased under the id until the offer is answered.
func (mb *member) missingLocked(offer session.ID) control.Terms {
	n := mb.network
	if addresses := n.movedLocked(mb, offer); addresses != nil {
		return control.Terms{Addresses: addresses, Peers: n.addresses()}
	}
	if mtu := uint16(n.g.m.cfg.Data.MTU); mtu != mb.terms.MTU && mtu != mb.declined[mtuTerms].MTU {
		return control.Terms{MTU: mtu}
	}
	if t := n.timers(); t != mb.terms.Timers && t != mb.declined[timerTerms].Timers {
		return control.Terms{Timers: t}
	}
	routes, d := n.routesFor(mb), mb.declined[routeTerms]
	if !samePrefixes(routes, mb.terms.Routes) && !(d.HasRoutes && samePrefixes(routes, d.Routes)) {
		return control.Terms{HasRoutes: true, Routes: routes}
	}
	return control.Terms{}
}

// movedLocked leases addresses to a session whose own are of pools that the
// network has no more.
func (n *network) movedLocked(mb *member, offer session.ID) []netip.Addr {
	outside := slices.ContainsFunc(n.pool.Outside(), func(l pool.Lease) bool { return l.Session == mb.id })
	if !outside || len(mb.declined[addressTerms].Addresses) > 0 {
		return nil
	}
	lease, err := n.pool.Lease(offer, mb.node, time.Now())
	if err != nil {
		n.g.m.log.Warn("no address for a session of other pools", event.KeySession, mb.id, event.KeyNetwork, n.cfg.Name, event.KeyErr, err)
		return nil
	}
	return lease.Addresses
}

// timers are those of this network's sessions.
func (n *network) timers() wire.Timers {
	t := n.cfg.Timers
	return wire.Timers{Hello: t.Hello, Misses: uint16(t.Misses), Grace: t.Grace}
}

// offeredLocked notes the open offer of a session; nil: there is none. The data
// plane takes packets of the offered addresses, too.
func (g *gateway) offeredLocked(mb *member, o *control.Offer) {
	moves := o != nil && len(o.Addresses) > 0 || mb.offer != nil && len(mb.offer.Addresses) > 0
	mb.offer = o
	if !moves || mb.network.dev == nil { // else open does it
		return
	}
	if err := mb.network.dev.SetAllowedIPs(mb.id, mb.prefixes()); err != nil {
		g.m.log.Error("addresses not changed", event.KeySession, mb.id, event.KeyErr, err)
	}
}

// prefixes are what the data plane takes from the session and sends to it.
func (mb *member) prefixes() []netip.Prefix {
	all := hostPrefixes(mb.addresses)
	if mb.offer != nil {
		all = append(all, hostPrefixes(mb.offer.Addresses)...)
	}
	return append(all, mb.advertise...)
}

// termsChanged: the node has taken the terms.
func (p *peerConn) termsChanged(a control.TermsChanged) {
	g, s := p.g, a.Session
	g.mu.Lock()
	defer g.mu.Unlock()
	mb := g.members.byID[s.ID]
	if mb == nil {
		return
	}
	if !slices.Equal(mb.addresses, s.Addresses) {
		g.moveLocked(mb, s.Addresses)
	}
	g.offeredLocked(mb, nil)
	mb.terms, mb.declined[kindOf(a.Terms)] = termsOf(s), control.Terms{}
	mb.life.Grace = s.Timers.Grace
	mb.deadline()
	p.offerLater()
	if text := termsText(a.Terms); text != "" {
		g.record(mb, event.Event{Kind: event.SessionChanged, Request: a.RequestID, Cause: text})
	}
}

// termsOf are the terms that the session has.
func termsOf(s control.Session) control.Terms {
	return control.Terms{MTU: s.MTU, Timers: s.Timers, HasRoutes: true, Routes: s.Routes}
}

// moveLocked gives the session the addresses that were leased for its offer, and
// back those it had.
func (g *gateway) moveLocked(mb *member, to []netip.Addr) {
	g.freeLocked(mb)
	if mb.offer != nil {
		mb.network.pool.Free(mb.offer.RequestID, time.Now())
	}
	g.members.remove(mb)
	mb.addresses = to
	g.members.add(mb)
	if err := mb.network.pool.Restore(mb.lease()); err != nil {
		g.m.log.Error("address not leased", event.KeySession, mb.id, event.KeyErr, err)
	}
}

// changeRefused: the session stays as it is. Where it was not the node that
// refused, another offer is open, or no transport carries the connection: after
// either the same is offered again.
func (p *peerConn) changeRefused(a control.ChangeRefused) {
	g := p.g
	g.mu.Lock()
	defer g.mu.Unlock()
	mb := g.members.byID[a.Session.ID]
	if mb == nil {
		return
	}
	if mb.offer != nil && mb.offer.RequestID == a.Offer.RequestID {
		g.withdrawLocked(mb)
	}
	if !a.Remote {
		return
	}
	if a.Offer.Any() { // and no refresh
		mb.declined[kindOf(a.Offer.Terms)] = a.Offer.Terms
	}
	p.offerLater()
	why := a.Result.Describe(wire.TypeCDN)
	g.m.log.Warn(string(event.ChangeRefused), event.KeySession, mb.id, event.KeyNode, mb.node, event.KeyCause, why, event.Request(a.Offer.RequestID))
	g.m.publish(event.Event{Kind: event.ChangeRefused, Session: mb.id, Node: mb.node, Network: mb.network.cfg.Name, Cause: why, Request: a.Offer.RequestID})
}

// withdrawLocked gives back what was leased for an offer that comes to nothing.
func (g *gateway) withdrawLocked(mb *member) {
	if mb.offer == nil {
		return
	}
	if len(mb.offer.Addresses) > 0 {
		g.restLocked(mb, mb.offer.RequestID) // the node knows of them, and the data plane took packets of them
	}
	g.offeredLocked(mb, nil)
}

// restoreOffer goes on with what was offered and not answered before this
// process; its addresses are leased again.
func (g *gateway) restoreOffer(mb *member) {
	o := mb.offer
	if o == nil || len(o.Addresses) == 0 {
		return
	}
	if err := mb.network.pool.Restore(pool.Lease{Session: o.RequestID, Owner: mb.node, Addresses: o.Addresses}); err != nil {
		g.m.log.Warn("offered address not leased", event.KeySession, mb.id, event.KeyErr, err)
	}
}
