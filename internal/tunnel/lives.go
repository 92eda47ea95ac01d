package tunnel

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"tunneld/internal/auth"
	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/life"
)

// newLife begins the clocks of a session now. beganAt is its beginning where that
// was earlier; zero: it is not known. own is this end of it.
func newLife(terms wire.Lifetime, s control.Session, beganAt time.Time, own wire.Refresher) life.Life {
	now := bootNow()
	l := life.New(terms, s.Timers.Grace, beganAt, now, time.Now())
	l.Refresh.Agreed(s.Expires, own, now)
	return l
}

// lookInterval is how often it is seen whether a session's time has come to be
// looked at, if none comes sooner.
const lookInterval = time.Second

// watchLives ends sessions whose time is over, and warns before.
func (m *Manager) watchLives(ctx context.Context) {
	const least = 20 * time.Millisecond
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		now, wall := bootNow(), time.Now()
		next := min(m.lookAtTunnels(ctx, now, wall), m.lookAtMembers(ctx, now, wall))
		t.Reset(min(max(next.Since(bootNow()), least), lookInterval))
	}
}

// A closing is a session that is to be ended.
type closing struct {
	conn doer
	control.CloseSession
}

// A doer takes events for a control connection: [control.Conn], or a peerConn,
// which may have to be woken for them.
type doer interface {
	Do(context.Context, control.Event) error
}

func closeAll(ctx context.Context, all []closing) {
	for _, c := range all {
		c.conn.Do(ctx, c.CloseSession)
	}
}

// ending is the CDN for an end that was reached.
func ending(cause wire.Cause) wire.Result {
	return wire.Result{Code: wire.CDNAdministrative, Cause: cause}
}

// expiring is the cause of a warning: which end, and when.
func expiring(e *life.End, now life.Instant, wall time.Time) string {
	return fmt.Sprintf("%s: ends at %s", e.Name(), e.At.Wall(now, wall).UTC().Format(time.RFC3339))
}

// lookAtMembers looks at the gateway's sessions whose time has come, and says
// when the next one's does.
func (m *Manager) lookAtMembers(ctx context.Context, now life.Instant, wall time.Time) (next life.Instant) {
	g := m.gateway
	next = life.Never
	if g == nil {
		return next
	}
	var over []closing
	var due []refreshing
	g.mu.Lock()
	for _, mb := range g.members.byID {
		if l := &mb.life; !l.Over && l.CheckAt <= now {
			if e := g.lookLocked(mb, now, wall); e != nil {
				l.Over = true
				over = append(over, closing{mb.conn, control.CloseSession{LocalID: mb.local, Result: ending(e.Cause), Statistics: g.statistics(mb)}})
			} else if r := mb.refreshLocked(now); r != nil {
				due = append(due, *r)
			}
		}
		next = min(next, mb.life.CheckAt)
	}
	parked := g.graceOverLocked(now)
	next = min(next, g.graceNext)
	g.mu.Unlock()
	closeAll(ctx, over)
	refreshAll(ctx, due)
	for _, p := range parked {
		p.woken()
	}
	return next
}

// lookLocked returns the end that a session has reached.
func (g *gateway) lookLocked(mb *member, now life.Instant, wall time.Time) (reached *life.End) {
	var st engine.Stats
	if mb.life.Terms.Idle > 0 {
		st = statsOf(mb.network.dev, mb.id)
	}
	reached, near := mb.life.Look(now, wall, st.RxPackets+st.TxPackets, mb.held)
	if near != nil {
		g.record(mb, event.Event{Kind: event.SessionExpiring, Cause: expiring(near, now, wall)})
	}
	if mb.life.Stopped(now, wall) {
		mb.deadline()
	}
	return reached
}

// nodeSlack is how long a node waits for its gateway to end a session before it
// does so itself: what it was told is rounded up, and the gateway's record
// says more.
const nodeSlack = 5 * time.Second

// lookAtTunnels does for this node's own sessions what lookAtMembers does for a
// gateway's, and proves anew who this node is where that is due.
func (m *Manager) lookAtTunnels(ctx context.Context, now life.Instant, wall time.Time) (next life.Instant) {
	next = life.Never
	var over []closing
	var due []refreshing
	m.mu.Lock()
	for _, t := range m.tunnels {
		l := &t.life
		if t.session == nil || l.Over {
			continue
		}
		if l.CheckAt <= now {
			if e := t.lookLocked(now, wall); e != nil && t.link.conn != nil {
				l.Over = true
				over = append(over, closing{t.link.conn, control.CloseSession{LocalID: t.session.LocalID, Result: ending(e.Cause)}})
			} else if r := t.refreshLocked(now); r != nil {
				due = append(due, *r)
			}
		}
		next = min(next, l.CheckAt)
	}
	m.mu.Unlock()
	closeAll(ctx, over)
	refreshAll(ctx, due)
	return next
}

// lookLocked returns the end that the session has reached and the gateway has
// not acted upon.
func (t *dialled) lookLocked(now life.Instant, wall time.Time) (reached *life.End) {
	l := &t.life
	var st engine.Stats
	if l.Terms.Idle > 0 {
		st = statsOf(t.dev, t.session.ID)
	}
	reached, near := l.Look(now, wall, st.RxPackets+st.TxPackets, t.saved.Held)
	if near != nil {
		t.record(t.session.ID, event.Event{Kind: event.SessionExpiring, Cause: expiring(near, now, wall)})
	}
	if l.Stopped(now, wall) {
		t.deadlineLocked()
	}
	t.proveLocked(now)
	if reached != nil && now.Since(reached.At) < nodeSlack {
		l.CheckAt = min(l.CheckAt, reached.At.Plus(nodeSlack))
		return nil
	}
	return reached
}

// reproveLocked has the link make a new transport before it asks for a session
// again, where it was the proof of the present one that is too old.
func (t *dialled) reproveLocked(cause wire.Cause) {
	if cause == wire.CauseReauth {
		t.link.redial = t.link.up
	}
}

// proveLocked has the link make a new transport beside the one in use when two
// thirds of the time to the next proof are over, a little earlier at random, so
// that the nodes of a gateway do not come in step.
func (t *dialled) proveLocked(now life.Instant) {
	l := &t.life
	if l.Terms.Reauth == 0 {
		return
	}
	if l.ProveAt == 0 {
		d := l.Terms.Reauth
		l.ProveAt = l.Proven.Plus(d*2/3 - rand.N(d/12+1))
	}
	if l.ProveAt <= now {
		l.ProveAt = now.Plus(max(l.Terms.Reauth/12, life.MinLook)) // another try, if this one fails
		if t.link.up {
			t.link.redial = true
			t.link.nudge()
		}
	}
	l.CheckAt = min(l.CheckAt, l.ProveAt)
}

// provenLocked: every session of the link was proved anew, and none waits for a
// transport.
func (l *link) provenLocked() {
	l.provenAt = bootNow()
	for _, t := range l.tunnels {
		t.life.Proven, t.life.ProveAt, t.life.GraceTo = l.provenAt, 0, 0
		t.life.Refresh.Again(l.provenAt)
		t.deadlineLocked()
	}
	l.holdLater()
}

// graceLocked: every session of the link ends when the suspension has lasted as
// long as the one with the longest grace may.
func (l *link) graceLocked() {
	longest := time.Duration(0)
	for _, t := range l.tunnels {
		if t.session != nil {
			longest = max(longest, t.life.Grace)
		}
	}
	for _, t := range l.tunnels {
		t.life.GraceTo = bootNow().Plus(longest)
		t.deadlineLocked()
	}
}

// deadlineLocked tells the data plane when to stop the session by itself.
func (t *dialled) deadlineLocked() {
	t.life.CheckAt = 0
	if t.session == nil || t.dev == nil {
		return
	}
	if err := t.dev.SetDeadline(t.session.ID, t.life.Deadline(bootNow(), time.Now())); err != nil {
		t.m.log.Error("deadline not set", event.KeyTunnel, t.cfg.Name, event.KeySession, t.session.ID, event.KeyErr, err)
	}
}

// toldLocked takes the deadlines that the gateway told; what is left counts from
// now on.
func (t *dialled) toldLocked(s control.Session) {
	old := t.life
	t.life = newLife(s.Lifetime, s, time.Time{}, wire.RefresherNode)
	t.life.GraceTo = old.GraceTo
	if !old.Over && old.Proven != 0 && t.session != nil && t.session.ID == s.ID {
		t.life.Proven, t.life.Active, t.life.Packets, t.life.Refresh = old.Proven, old.Active, old.Packets, old.Refresh
	}
	t.session = &s
	t.deadlineLocked()
	if s.Lifetime != (wire.Lifetime{}) || s.Expires.After > 0 {
		t.m.chores.add("counters", func(context.Context) { t.m.saveCounters() })
	}
}

// restoreLife goes on with the life of a session that outlived its process.
func (t *dialled) restoreLife(remaining time.Duration) {
	t.life = newLife(t.session.Lifetime, *t.session, time.Time{}, wire.RefresherNode)
	now := bootNow()
	t.life.Restore(t.base.Ages, now, time.Now(), hostBoot())
	t.life.GraceTo = now.Plus(remaining)
	t.base.Ages = nil
}

// lifetime is what this network's configuration says ends a session.
func (n *network) lifetime() wire.Lifetime {
	t := n.cfg.Timers
	return wire.Lifetime{Idle: t.Idle, Absolute: t.Absolute, Reauth: t.Reauth}
}

// deadline tells the data plane when to stop the session by itself. The caller
// holds gateway.mu.
func (mb *member) deadline() {
	mb.life.CheckAt = 0
	if err := mb.network.dev.SetDeadline(mb.id, mb.life.Deadline(bootNow(), time.Now())); err != nil {
		mb.network.g.m.log.Error("deadline not set", event.KeySession, mb.id, event.KeyErr, err)
	}
}

// restoreLife goes on with the life of a session that outlived its process.
func (mb *member) restoreLife(remaining time.Duration) {
	now := bootNow()
	mb.life.Restore(mb.base.Ages, now, time.Now(), hostBoot())
	mb.life.GraceTo = now.Plus(remaining)
	mb.base.Ages = nil
}

// suspended: the sessions of the connection end when the suspension has lasted
// as long as the one with the longest grace may.
func (p *peerConn) suspended() {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	longest := time.Duration(0)
	for _, mb := range p.g.members.byConn.list(p) {
		longest = max(longest, mb.life.Grace)
	}
	for _, mb := range p.g.members.byConn.list(p) {
		mb.life.GraceTo = bootNow().Plus(longest)
		mb.deadline()
	}
}

// proven: the node has proved anew who it is. One that was restarted, or a
// gateway that was, may have other deadlines in mind: they are told again.
func (p *peerConn) proven(restarted bool) {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	p.provenAt = bootNow()
	if p.g.drain != nil {
		p.tellDrainLater()
	}
	for _, mb := range p.g.members.byConn.list(p) {
		mb.life.Proven, mb.life.GraceTo = p.provenAt, 0
		mb.life.Refresh.Again(p.provenAt)
		mb.deadline()
	}
	p.offerLater() // what could not be offered meanwhile
	if restarted || p.restored {
		p.tellLifetimesLater()
		p.g.m.chores.add("stamps "+connectionKey(p.id), p.tellStamps)
	}
}

// tellLifetimes tells the node what ends its sessions and what is left of that.
// What was extended on the way is told again: the node takes the last word.
func (p *peerConn) tellLifetimes(ctx context.Context) {
	tell, said := p.lifetimes()
	for _, c := range tell {
		p.Do(ctx, c)
	}
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	for mb, terms := range said {
		if mb.life.Terms != terms {
			p.tellLifetimesLater()
			return
		}
	}
}

func (p *peerConn) tellLifetimesLater() {
	p.g.m.chores.add("lifetimes "+connectionKey(p.id), p.tellLifetimes)
}

// lifetimes is what there is to tell of the node's sessions, and of what terms
// that speaks.
func (p *peerConn) lifetimes() (tell []control.ChangeLifetime, said map[*member]wire.Lifetime) {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	said = map[*member]wire.Lifetime{}
	now, wall := bootNow(), time.Now()
	for _, mb := range p.g.members.byConn.list(p) {
		terms := mb.life.Terms
		if terms == (wire.Lifetime{}) && mb.told == terms {
			continue
		}
		mb.told, said[mb] = terms, terms
		if terms.Absolute > 0 {
			terms.Absolute = max(time.Second, mb.life.AbsoluteTo(now, wall).Since(now))
		}
		tell = append(tell, control.ChangeLifetime{LocalID: mb.local, Lifetime: terms})
	}
	return tell, said
}

// proofTooOld refuses a session over a transport whose set-up is longer ago than
// the network lets a proof be: it would be over when it begins.
func (p *peerConn) proofTooOld(n *network) *wire.Result {
	if d := n.cfg.Timers.Reauth; d > 0 && bootNow().Since(p.provenAt) >= d {
		return refusal(wire.CauseReauth, "node %q must prove anew who it is", p.node)
	}
	return nil
}

// certificateTo remembers until when the node's newest certificate is good.
func (p *peerConn) certificateTo(at time.Time) {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	if !at.After(p.certTo) {
		return
	}
	p.certTo = at
	for _, mb := range p.g.members.byConn.list(p) {
		mb.life.CertTo = at
		if mb.network.dev != nil {
			mb.deadline()
		}
	}
}

// certificates are the ends of the certificates of all nodes that have one.
func (g *gateway) certificates() (map[session.ID]time.Time, error) {
	nodes, err := g.registry.List()
	if err != nil {
		return nil, err
	}
	ends := make(map[session.ID]time.Time, len(nodes))
	for _, n := range nodes {
		if n.State == auth.Enrolled {
			ends[n.ID] = n.ExpiresAt
		}
	}
	return ends, nil
}
