package sim

import (
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// The lifetimes that ends agree on, and their refreshers.

// refreshed gives a network bounds of lifetimes, or none.
func (n *network) refreshed(w *world) {
	n.policy.Refresher = wire.RefresherNode + wire.Refresher(w.rng.IntN(2))
	if w.chance(2) {
		n.policy.Least = w.between(30*time.Second, time.Minute).Truncate(time.Second)
	}
	if w.chance(3) {
		n.policy.Longest = w.between(time.Minute, 3*time.Minute).Truncate(time.Second)
	}
}

// relimit is a network whose configuration lets lifetimes be longer or shorter.
func (w *world) relimit() {
	g := w.anyGateway()
	n := g.networks[w.rng.IntN(len(g.networks))]
	n.policy.Longest = w.between(time.Minute, 3*time.Minute).Truncate(time.Second)
}

// wish is what a tunnel asks for, often nothing. It is long enough for two answers
// on a slow line.
func (w *world) wish() wire.Expires {
	e := wire.Expires{Refresher: wire.Refresher(w.rng.IntN(3))}
	if w.chance(3) {
		e.After = w.between(25*time.Second, 2*time.Minute).Truncate(time.Second)
	}
	return e
}

// Refresh agrees to a node's refresh as internal/tunnel does.
func (p *peer) Refresh(a control.AskRefresh) control.Agreed {
	g := p.g
	answer := control.Agreed{LocalID: a.Session.LocalID}
	m := g.member(a.Session.ID)
	switch {
	case g.h.disk.revoked[p.nodeID]:
		answer.Refusal = refusal(wire.CauseRevoked)
	case !p.may(a.Session.Network):
		answer.Refusal = refusal(wire.CauseNetworkRight)
	case m == nil || m.life.Over:
		answer.Refusal = refusal(wire.CauseLocal)
	default:
		p.serial = g.h.disk.serial
		answer.Expires, answer.Refusal = m.n.policy.Answer(&a.Expires)
	}
	return answer
}

// Refresh agrees to a gateway's refresh, mostly.
func (k *linkConn) Refresh(a control.AskRefresh) control.Agreed {
	answer := control.Agreed{LocalID: a.Session.LocalID, Expires: a.Expires}
	if w := k.l.n.w; !w.healed && w.chance(8) {
		answer.Refusal = refusal(wire.CauseLocal)
	}
	return answer
}

// refreshed begins the lifetime of a session anew.
func (g *gateway) refreshed(s control.Session) {
	m := g.member(s.ID)
	if m == nil {
		return
	}
	if least := m.n.policy.Least; s.Expires.After < least {
		broken("floor", "%s lets session %v live %v, its network no less than %v", g.h.name, s.ID, s.Expires.After, least)
	}
	m.life.Refresh.Agreed(s.Expires, wire.RefresherGateway, g.w.instant())
	g.w.ghost.sessions[m.id].refreshedAt = g.w.now
	g.w.stats.refreshes++
	m.deadline()
}

// unrefreshed checks that no session ends for want of a refresh when nothing is
// in the way of one.
func (g *ghost) unrefreshed(m *member) {
	const (
		slack = 30 * time.Second // for what was left to be mended
		least = time.Minute      // lines are slow here: what is less may be over before its refresh is answered
	)
	after, awake := m.life.Refresh.After, max(g.w.healedAt, g.sessions[m.id].seenFrom) // it may have been frozen
	if w := g.w; m.cause == wire.CauseUnrefreshed && w.healed && after >= least && w.now-awake > after+slack {
		broken("P1", "%s ends session %v for want of a refresh, though nothing is in its way", m.p.g.h.name, m.id)
	}
}

// refreshes has a node refresh the session of a tunnel in time, where it is the
// one to do so.
func (t *tunnel) refreshes(s control.Session) {
	t.refreshing++
	mine, l, e := t.refreshing, t.l, s.Expires
	if e.After == 0 || e.Refresher != wire.RefresherNode {
		return
	}
	var again func()
	again = func() {
		if t.refreshing == mine && l.c != nil && t.session != nil && t.session.ID == s.ID {
			l.c.do(control.RefreshSession{LocalID: s.LocalID, After: max(e.After, t.wish.After)})
			l.n.h.after(max(e.After/12, time.Second), again)
		}
	}
	l.n.h.after(e.After/2-l.n.w.between(0, e.After/12), again)
}

// refreshAll does so for all sessions of the link.
func (l *link) refreshAll() {
	for _, t := range l.tunnels {
		if t.session != nil && t.session.State == session.Established {
			t.refreshes(*t.session)
		}
	}
}
