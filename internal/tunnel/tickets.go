package tunnel

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/auth"
	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/store"
	"tunneld/internal/tunnel/life"
	"tunneld/internal/tunnel/pool"
)

// rebuilding is a session that is granted by its ticket and not set up yet.
type rebuilding struct {
	ticket auth.Ticket
	raw    []byte
}

// reconcile makes the store one whose loss is not the loss of the deployment:
// docs/operations.md, "A lost state directory". It says whether it was lost.
func reconcile(st store.Store, k auth.Keep) (_ store.Store, rebuilt bool, err error) {
	if k.Keys == nil {
		return st, false, nil
	}
	rebuilt, err = k.Reconcile(st, bucketNetworks)
	return k.Mirror(st, bucketNetworks), rebuilt, err
}

// openTickets reads what this gateway knows of its tickets. Where the state
// directory was lost, the addresses of sessions that may come back by theirs rest
// for their nodes.
func (g *gateway) openTickets() (err error) {
	if g.m.keep.Keys == nil {
		return nil
	}
	now := time.Now()
	if g.tickets, err = auth.OpenTickets(g.m.keep, g.registry.Identity().ID, now, g.longestGrace()); err != nil {
		return err
	}
	if !g.m.rebuilt {
		return nil
	}
	rests := map[string][]pool.Rest{}
	for _, l := range g.tickets.Leases(now) {
		rests[l.Network] = append(rests[l.Network], pool.Rest{Owner: l.Owner, Addresses: l.Addresses, FreedAt: now})
	}
	for _, n := range g.networks {
		n.pool.RestoreRests(rests[n.cfg.Name], now)
	}
	return nil
}

func (g *gateway) longestGrace() (longest time.Duration) {
	for _, n := range g.networks {
		longest = max(longest, n.cfg.Timers.Grace)
	}
	return longest
}

// rotateTickets does what time alone demands of tickets.
func (g *gateway) rotateTickets() {
	if err := g.tickets.Rotate(time.Now(), g.longestGrace()); err != nil {
		g.m.log.Error("ticket keys not rotated", event.KeyErr, err)
	}
}

// saveTickets makes durable which tickets count.
func (g *gateway) saveTickets(context.Context) {
	if g.tickets == nil {
		return
	}
	if err := g.tickets.Save(); err != nil {
		g.m.log.Error("tickets not recorded", event.KeyErr, err)
	}
}

// Ticket seals what a session is, for its node to keep (control.TicketHandler).
func (p *peerConn) Ticket(s control.Session) []byte {
	g := p.g
	g.mu.Lock()
	defer g.mu.Unlock()
	mb := g.members.byID[s.ID]
	if mb == nil || g.tickets == nil {
		return nil
	}
	now := time.Now()
	until := now.Add(s.Timers.Grace)
	if a := mb.life.Terms.Absolute; a > 0 {
		until = earlier(until, s.Began.Add(a))
	}
	if !p.certTo.IsZero() {
		until = earlier(until, p.certTo)
	}
	c := g.countersLocked(mb)
	b, err := g.tickets.Seal(p.nodeID, auth.Ticket{
		Until: until, Session: s.ID, Network: s.Network, Owner: p.node, PeerKey: s.PeerKey, KeyEpoch: s.KeyEpoch,
		Addresses: s.Addresses, Advertise: s.Advertise, Began: s.Began, Extended: s.Extended, Resumes: s.Resumes, RxBytes: c.RxBytes, TxBytes: c.TxBytes,
	})
	if err != nil {
		g.m.log.Error("no ticket for the session", event.KeySession, s.ID, event.KeyErr, err)
		return nil
	}
	g.m.chores.add("tickets", g.saveTickets)
	return b
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// ticketEndedLocked: no ticket of the session counts any more.
func (g *gateway) ticketEndedLocked(id session.ID) {
	if g.tickets != nil {
		g.tickets.Ended(id)
		g.m.chores.add("tickets", g.saveTickets)
	}
}

// rebuild decides about a session that a node claims with a ticket. Rights are
// looked at as for a new one; where nobody knows them, because the book of nodes
// is lost, those in the ticket must do, and the session is quarantined.
func (p *peerConn) rebuild(q *wire.ICRQ) (control.Grant, *wire.Result) {
	g := p.g
	serial := g.registry.RevocationSerial()
	networks, advertise, ok := g.registry.Rights(p.nodeID)
	if !ok && !g.registry.Stranger(p.nodeID) {
		return control.Grant{}, refusal(wire.CauseRevoked, "node %q is revoked", p.node)
	}
	t, r := p.openTicket(q)
	if r != nil {
		return control.Grant{}, r
	}
	if !ok {
		networks, advertise = []string{t.Network}, t.Advertise
	}
	p.serial = serial
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.network(t.Network)
	if n == nil {
		return control.Grant{}, refusal(wire.CauseUnknownNetwork, "there is no network %q here", t.Network)
	}
	if r := g.mayRebuildLocked(n, p, q, t); r != nil {
		return control.Grant{}, r
	}
	if r := n.admitLocked(p, q, networks, advertise); r != nil {
		return control.Grant{}, r
	}
	if err := n.pool.Claim(pool.Lease{Session: t.Session, Owner: p.node, Addresses: t.Addresses}, time.Now()); err != nil {
		return control.Grant{}, refusal(wire.CauseTicketLeased, "%v", err)
	}
	g.rebuilding[t.Session] = rebuilding{t, q.Ticket}
	grant := n.grantOf(q, t.Session, t.Addresses)
	grant.Began, grant.KeyEpoch, grant.Resumes, grant.Extended = t.Began, q.KeyEpoch, t.Resumes+1, t.Extended
	grant.Lifetime = n.lifetimeIn(t)
	if a := &grant.Lifetime.Absolute; *a > 0 {
		*a = max(time.Second, *a-life.WallSince(t.Began, time.Now()))
	}
	return grant, nil
}

// openTicket reads the ticket of a request.
func (p *peerConn) openTicket(q *wire.ICRQ) (auth.Ticket, *wire.Result) {
	if p.g.tickets == nil {
		return auth.Ticket{}, refusal(wire.CauseTicketForeign, "this gateway gives no tickets")
	}
	t, err := p.g.tickets.Open(q.Ticket, p.nodeID, time.Now())
	switch {
	case err == nil && (q.RemoteEnd != t.Network || q.PublicKey != t.PeerKey):
		return t, refusal(wire.CauseTicketForeign, "the ticket is of another session")
	case err == nil && q.KeyEpoch <= t.KeyEpoch:
		return t, refusal(wire.CauseTicketOld, "the ticket knows of later keys than the node")
	case err == nil:
		return t, nil
	case errors.Is(err, auth.ErrTicketUsed):
		p.Notify(control.Cloned{})
		return t, refusal(wire.CauseTicketUsed, "")
	case errors.Is(err, auth.ErrTicketOld):
		return t, refusal(wire.CauseTicketOld, "")
	}
	return t, refusal(wire.CauseTicketForeign, "")
}

// mayRebuildLocked refuses to raise what lives, or what something newer took the
// place of.
func (g *gateway) mayRebuildLocked(n *network, p *peerConn, q *wire.ICRQ, t auth.Ticket) *wire.Result {
	if g.members.byID[t.Session] != nil || slices.ContainsFunc(p.journalled, func(id session.ID) bool { return id == t.Session }) {
		return refusal(wire.CauseTicketUsed, "that session lives")
	}
	for _, mb := range g.members.byNode.list(p.nodeID) {
		if mb.network == n {
			return refusal(wire.CauseTicketOld, "the node has begun another session since")
		}
	}
	if a := n.lifetimeIn(t).Absolute; a > 0 && life.WallSince(t.Began, time.Now()) >= a {
		return refusal(wire.CauseAbsolute, "")
	}
	return nil
}

// lifetimeIn is what ends the session of a ticket.
func (n *network) lifetimeIn(t auth.Ticket) wire.Lifetime {
	return n.lifetimeOf(control.Session{Life: control.Life{Extended: t.Extended}})
}

// rebuiltLocked completes a session that is set up by its ticket, which is used
// from now on.
func (g *gateway) rebuiltLocked(mb *member) {
	r, ok := g.rebuilding[mb.id]
	if !ok {
		return
	}
	delete(g.rebuilding, mb.id)
	mb.rebuilt = true
	mb.base = countersV1{RxBytes: r.ticket.RxBytes, TxBytes: r.ticket.TxBytes}
	g.tickets.Used(r.ticket, r.raw)
	g.m.chores.add("tickets", g.saveTickets)
}

// upEvent is what is told when a session comes up.
func (mb *member) upEvent() event.Event {
	switch {
	case mb.stranger():
		return event.Event{Kind: event.SessionRebuilt, Cause: "from its ticket; quarantined, since the book of nodes is lost"}
	case mb.rebuilt:
		return event.Event{Kind: event.SessionRebuilt, Cause: "from its ticket"}
	}
	return event.Event{Kind: event.SessionEstablished}
}

// lostBook is the problem of a gateway that knows neither its nodes nor who was
// revoked.
func (g *gateway) lostBook() api.Problem {
	return api.Problem{
		What: "the book of nodes is lost: nobody gets a new session, and those that are rebuilt from tickets are quarantined",
		Mend: "restore " + filepath.Join(g.m.cfg.Gateway.TicketDir, "book") + " from its backup and restart the daemon; without one, `tunnelctl session release` for the nodes you answer for, and invite the others anew",
	}
}
