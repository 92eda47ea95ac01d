package tunnel

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"tunneld/internal/config"
	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/life"
)

// The lifetime that the ends of a session agree on, and who refreshes it:
// docs/protocol.md, "Lifetime and refresher".

// refresherOf reads the word of the configuration.
func refresherOf(name string) wire.Refresher {
	switch name {
	case config.RefresherNode:
		return wire.RefresherNode
	case config.RefresherGateway:
		return wire.RefresherGateway
	}
	return wire.RefresherAny
}

// leastLifetime is the floor of a network that names none (RFC 4028, section 5):
// each refresh is written down at both ends, and a node is not to make its gateway
// do that all the time.
const leastLifetime = 90 * time.Second

// policy is what the network agrees to.
func (n *network) policy() life.Policy {
	t := n.cfg.Timers
	p := life.Policy{Longest: t.Lifetime, Least: t.MinLifetime, Refresher: refresherOf(t.Refresher)}
	if p.Least == 0 {
		p.Least = leastLifetime
		if p.Longest > 0 {
			p.Least = min(p.Least, p.Longest)
		}
	}
	if p.Refresher == wire.RefresherAny {
		p.Refresher = wire.RefresherNode
	}
	return p
}

// wishes is what the tunnel asks for.
func (t *dialled) wishes() wire.Expires {
	return wire.Expires{After: t.cfg.Lifetime, Refresher: refresherOf(t.cfg.Refresher)}
}

// A refreshing is a session that this end is to refresh.
type refreshing struct {
	conn doer
	control.RefreshSession
}

func refreshAll(ctx context.Context, all []refreshing) {
	for _, r := range all {
		r.conn.Do(ctx, r.RefreshSession)
	}
}

// refreshLocked is the refresh that is due of a member, if this gateway makes it.
func (mb *member) refreshLocked(now life.Instant) *refreshing {
	if mb.state == session.Suspended || !mb.life.RefreshDue(now, rand.Float64()) { // a resume counts as one
		return nil
	}
	after := mb.life.Refresh.After
	if p := mb.network.policy(); p.Longest > 0 {
		after = min(after, p.Longest)
	}
	return &refreshing{mb.conn, control.RefreshSession{LocalID: mb.local, After: after}}
}

// refreshLocked is the refresh that is due of a tunnel's session, if this node
// makes it.
func (t *dialled) refreshLocked(now life.Instant) *refreshing {
	if !t.life.RefreshDue(now, rand.Float64()) || t.link.conn == nil {
		return nil
	}
	after := t.cfg.Lifetime
	if after == 0 {
		after = t.life.Refresh.After
	}
	return &refreshing{t.link.conn, control.RefreshSession{LocalID: t.session.LocalID, After: after}}
}

// Refresh agrees to a node's refresh, if its rights are as they were
// (control.ChangeHandler).
func (p *peerConn) Refresh(a control.AskRefresh) control.Agreed {
	answer := control.Agreed{LocalID: a.Session.LocalID}
	if answer.Refusal = p.stillMay(a.Session.Network); answer.Refusal != nil {
		return answer
	}
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	mb := p.g.members.byID[a.Session.ID]
	if mb == nil || mb.life.Over {
		answer.Refusal = refusal(wire.CauseLocal, "the session is ending")
		return answer
	}
	answer.Expires, answer.Refusal = mb.network.policy().Answer(&a.Expires)
	return answer
}

// Refresh agrees to a gateway's refresh of a session that is wanted
// (control.ChangeHandler).
func (c *linkConn) Refresh(a control.AskRefresh) control.Agreed {
	m := c.l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	answer := control.Agreed{LocalID: a.Session.LocalID, Expires: a.Expires}
	if t := c.l.labelled(a.Session.Label); t == nil || t.session == nil || t.life.Over || !t.wanted {
		answer.Refusal = refusal(wire.CauseLocal, "the session is ending")
	}
	return answer
}

// refreshedLocked begins a lifetime anew; text says what has changed of it.
func refreshedLocked(l *life.Life, e wire.Expires, own wire.Refresher) (text string) {
	if l.Refresh.Expires == e {
		l.Refresh.Again(bootNow())
		return ""
	}
	l.Refresh.Agreed(e, own, bootNow())
	return lifetimeText(e)
}

func lifetimeText(e wire.Expires) string {
	return fmt.Sprintf("lifetime %v, refreshed by the %v", e.After, e.Refresher)
}

// refreshed: one end has refreshed the session, and the other agreed.
func (p *peerConn) refreshed(a control.SessionRefreshed) {
	g := p.g
	g.mu.Lock()
	defer g.mu.Unlock()
	mb := g.members.byID[a.Session.ID]
	if mb == nil {
		return
	}
	text := refreshedLocked(&mb.life, a.Session.Expires, wire.RefresherGateway)
	mb.deadline()
	if mb.offer != nil && mb.offer.RequestID == a.RequestID { // of before this process
		g.offeredLocked(mb, nil)
	}
	p.offerLater() // what had to wait for the answer
	g.m.log.Debug("session refreshed", event.KeySession, mb.id)
	if text != "" {
		g.record(mb, event.Event{Kind: event.SessionChanged, Request: a.RequestID, Cause: text})
	}
}

// refreshedLocked is the same at the node.
func (t *dialled) refreshedLocked(a control.SessionRefreshed) {
	s := a.Session
	t.session = &s
	text := refreshedLocked(&t.life, s.Expires, wire.RefresherNode)
	t.deadlineLocked()
	t.m.log.Debug("session refreshed", event.KeyTunnel, t.cfg.Name, event.KeySession, s.ID)
	if text != "" {
		t.record(s.ID, event.Event{Kind: event.SessionChanged, Request: a.RequestID, Cause: text})
	}
}

// lifetimeView is a lifetime as `status` and `session show` tell it: what was
// agreed, who refreshes, and by when.
func lifetimeView(r *life.Refresh, now life.Instant, wall time.Time) (lifetime *int64, refresher *string, at *time.Time) {
	if r.After == 0 {
		return nil, nil, nil
	}
	ms := r.After.Milliseconds()
	return &ms, maybe(r.Refresher.String()), instant(r.NextAt().Wall(now, wall).Round(0))
}
