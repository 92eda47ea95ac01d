package sim

import (
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/life"
)

// The lives of sessions: the clocks are those of internal/tunnel/life, and are
// looked at, journalled and told as internal/tunnel does.

// thisBoot is the one start of every machine: only daemons are killed here.
const thisBoot = "boot"

// instant is the present on a host's CLOCK_BOOTTIME.
func (w *world) instant() life.Instant { return life.Instant(w.now) }

// timed gives a network ends of its sessions' lives, or none.
func (n *network) timed(w *world) {
	n.refreshed(w)
	if w.chance(2) {
		return
	}
	if w.chance(2) {
		n.terms.Absolute = w.between(time.Minute, 5*time.Minute).Truncate(time.Second)
		if w.chance(2) {
			n.extend = w.between(time.Minute, 5*time.Minute).Truncate(time.Second)
		}
	}
	if w.chance(2) {
		n.terms.Reauth = w.between(30*time.Second, time.Minute).Truncate(time.Second)
	}
	if w.chance(3) {
		n.terms.Idle = w.between(20*time.Second, time.Minute).Truncate(time.Second)
	}
}

// lifetimeOf is that of internal/tunnel.
func (n *network) lifetimeOf(s control.Session) wire.Lifetime {
	l := n.terms
	if l.Absolute > 0 {
		l.Absolute += min(s.Extended, n.extend)
	}
	return l
}

// begin starts the clocks of a member.
func (m *member) begin(s control.Session) {
	g := m.p.g
	m.life = life.New(m.n.lifetimeOf(s), s.Timers.Grace, s.Began, g.w.instant(), g.h.wall())
	m.life.Refresh.Agreed(s.Expires, wire.RefresherGateway, g.w.instant())
	m.held = s.Held
	if m.p.proven != 0 {
		m.life.Proven = m.p.proven
	}
	m.deadline()
}

// deadline tells the data plane when to stop the session by itself.
func (m *member) deadline() {
	now, wall := m.p.g.w.instant(), m.p.g.h.wall()
	m.life.CheckAt = 0
	m.hard = life.Never
	if at := m.life.Deadline(now, wall); !at.IsZero() {
		m.hard = now.Plus(at.Sub(wall))
	}
}

// restore goes on with the clocks of a session that outlived its daemon.
func (m *member) restore(left time.Duration) {
	g := m.p.g
	m.life.Restore(g.h.disk.ages[m.id], g.w.instant(), g.h.wall(), thisBoot)
	m.life.GraceTo = g.w.instant().Plus(left)
	m.deadline()
}

func (p *peer) members() (all []*member) {
	for _, m := range p.g.members {
		if m.p == p {
			all = append(all, m)
		}
	}
	return all
}

// provenNow: the node has proved who it is.
func (p *peer) provenNow() {
	p.proven = p.g.w.instant()
	if p.g.drain != nil {
		p.tellDrainSoon()
	}
	for _, m := range p.members() {
		m.life.Proven, m.life.GraceTo = p.proven, 0
		m.life.Refresh.Again(p.proven)
		m.deadline()
		l := p.g.w.ghost.sessions[m.id]
		l.provenAt, l.refreshedAt = p.g.w.now, p.g.w.now
	}
}

// suspendedNow: all sessions of the connection end with the longest grace.
func (p *peer) suspendedNow() {
	longest := time.Duration(0)
	for _, m := range p.members() {
		longest = max(longest, m.life.Grace)
	}
	for _, m := range p.members() {
		m.life.GraceTo = p.g.w.instant().Plus(longest)
		m.deadline()
	}
}

// lookInterval and tick are those of internal/tunnel.
const (
	lookInterval = time.Second
	ageTicks     = 10
)

// looks ends the sessions whose time is over, for as long as the daemon lives.
func (g *gateway) looks(n int) {
	g.h.after(lookInterval, func() {
		now, wall := g.w.instant(), g.h.wall()
		g.w.ghost.looked(g)
		var over, due []*member
		for _, m := range g.members {
			if g.w.chance(3) && m.open && !m.held {
				m.packets++
				g.w.ghost.sessions[m.id].packetAt = g.w.now
			}
			if m.life.Over || m.life.CheckAt > now {
				continue
			}
			if reached, _ := m.life.Look(now, wall, m.packets, m.held); reached != nil {
				m.life.Over = true
				m.cause = reached.Cause
				over = append(over, m)
			} else if m.life.Stopped(now, wall) {
				m.deadline()
			} else if m.life.RefreshDue(now, g.w.rng.Float64()) {
				due = append(due, m)
			}
		}
		g.w.ghost.lives(g)
		for _, m := range over {
			g.w.logf("%s: the time of session %v is over: %d", g.h.name, m.id, m.cause)
			g.w.ghost.unrefreshed(m)
			m.p.c.do(control.CloseSession{LocalID: m.local, Result: administrative(m.cause)})
		}
		for _, m := range due {
			after := m.life.Refresh.After
			if longest := m.n.policy.Longest; longest > 0 {
				after = min(after, longest)
			}
			m.p.c.do(control.RefreshSession{LocalID: m.local, After: after})
		}
		if n%ageTicks == 0 {
			g.saveAges(now, wall)
		}
		g.looks(n + 1)
	})
}

func (g *gateway) saveAges(now life.Instant, wall time.Time) {
	g.h.disk.commit(func() error {
		ages := map[session.ID]*life.Ages{}
		for _, m := range g.members {
			ages[m.id] = m.life.Ages(now, wall, thisBoot)
			g.w.ghost.sessions[m.id].aged = true
		}
		g.h.disk.ages = ages
		return nil
	})
}

// Extend decides about a longer life as internal/tunnel does.
func (p *peer) Extend(a control.AskExtend) control.Extended {
	g := p.g
	no := func(c wire.Cause) control.Extended {
		return control.Extended{LocalID: a.Session.LocalID, Refusal: refusal(c)}
	}
	m := g.member(a.Session.ID)
	switch {
	case g.h.disk.revoked[p.nodeID]:
		return no(wire.CauseRevoked)
	case !p.may(a.Session.Network):
		return no(wire.CauseNetworkRight)
	case m == nil || m.life.Over:
		return no(wire.CauseLocal)
	}
	p.serial = g.h.disk.serial
	now := g.w.instant()
	left := m.life.AbsoluteTo(now, g.h.wall()).Since(now)
	by := min(a.Session.Extended+a.Left-left, m.n.extend).Truncate(time.Second)
	terms := m.life.Terms
	if terms.Absolute == 0 || by <= a.Session.Extended {
		return no(wire.CauseNoExtension)
	}
	terms.Absolute = max(time.Second, left+by-a.Session.Extended)
	return control.Extended{LocalID: a.Session.LocalID, Lifetime: terms, By: by}
}

// Change is asked of nodes only.
func (p *peer) Change(control.Session) *wire.Result { panic("asked of a gateway") }

// Extend is asked of gateways only.
func (k *linkConn) Extend(control.AskExtend) control.Extended { panic("asked of a node") }

// proves has the link make a new transport when two thirds of the time to the
// next proof are over.
func (l *link) proves() {
	l.proofs++
	mine := l.proofs
	for _, t := range l.tunnels {
		if t.session == nil || t.session.Lifetime.Reauth == 0 {
			continue
		}
		reauth := t.session.Lifetime.Reauth
		var again func()
		again = func() {
			if l.proofs == mine && l.up {
				l.redial = true
				l.nudge()
				l.n.h.after(max(reauth/12, time.Second), again)
			}
		}
		l.n.h.after(max(0, l.provenAt+reauth*2/3-l.n.w.now), again)
	}
}

// extend is `tunnelctl extend`.
func (w *world) extend() {
	if t := w.anyTunnel(); t.l.n.h.runs() && t.l.c != nil && t.session != nil {
		t.l.c.do(control.ExtendSession{LocalID: t.session.LocalID, Left: w.between(time.Second, 10*time.Minute)})
	}
}

// truth is what the world knows of a session's life.
type truth struct {
	began       time.Duration
	provenAt    time.Duration
	refreshedAt time.Duration
	packetAt    time.Duration
	extended    time.Duration
	heldAt      time.Duration // when it was held last
	seenFrom    time.Duration // its gateway counts idleness from here on
	aged, blind bool          // its age was journalled; it was not when its daemon was killed and its clock set
}

// looked notes that a gateway that was frozen could not see what passed.
func (g *ghost) looked(gw *gateway) {
	if g.w.now-gw.looked > 2*lookInterval {
		for _, m := range gw.members {
			g.sessions[m.id].seenFrom = g.w.now
		}
	}
	gw.looked = g.w.now
}

// lives checks P5: no session outlives its ends, whatever was killed and however
// clocks were set, because the data plane was told when to stop it; and the
// control plane ends it, too.
func (g *ghost) lives(gw *gateway) {
	now := g.w.instant()
	for _, m := range gw.members {
		l := g.sessions[m.id]
		latest := func(what string, at, slack time.Duration) {
			if m.hard > life.Instant(at+slack) {
				broken("P5", "the data plane of %s stops session %v at %v, its %s is over at %v", gw.h.name, m.id, time.Duration(m.hard), what, at)
			}
		}
		if a := m.n.terms.Absolute; a > 0 && !l.blind {
			latest("time", l.began+a+l.extended, time.Second)
		}
		if r := m.n.terms.Reauth; r > 0 && !l.blind {
			latest("proof", l.provenAt+r, time.Second)
		}
		if after := m.life.Refresh.After; after > 0 && !l.blind {
			latest("lifetime", l.refreshedAt+after, time.Second)
		}
		if c := m.p.c; c.suspended >= 0 {
			latest("grace", c.suspended+c.remaining+c.slack, time.Second)
		}
		if m.hard <= now && !m.life.Over && (m.life.GraceTo == 0 || m.hard < m.life.GraceTo) {
			broken("P5", "%s goes on with session %v, whose time was over at %v", gw.h.name, m.id, time.Duration(m.hard))
		}
		if i := m.n.terms.Idle; i > 0 && !m.held && !m.life.Over && g.w.now-max(l.packetAt, l.began, l.seenFrom, l.heldAt) > i+i/8+3*time.Second {
			broken("P5", "%s goes on with session %v, which has been idle for %v of %v", gw.h.name, m.id, g.w.now-l.packetAt, i)
		}
	}
}

var (
	_ control.ChangeHandler = (*peer)(nil)
	_ control.ChangeHandler = (*linkConn)(nil)
)
