package tunnel

import (
	"context"
	"fmt"

	"tunneld/internal/api"
	"tunneld/internal/control"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

// Suspend holds a tunnel's session at both ends until Resume, also over restarts:
// everything is kept, nothing passes.
func (m *Manager) Suspend(ctx context.Context, name string) error { return m.hold(ctx, name, true) }

// Resume goes on with what Suspend held.
func (m *Manager) Resume(ctx context.Context, name string) error { return m.hold(ctx, name, false) }

func (m *Manager) hold(ctx context.Context, name string, held bool) error {
	m.mu.Lock()
	t, err := m.tunnelLocked(name)
	m.mu.Unlock()
	if err == nil && api.IfSerialOf(ctx) != 0 {
		err = t.holdIf(ctx, held)
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	if t.saved.Held != held {
		err = t.holdLocked(held, api.RequestOf(ctx))
	}
	m.mu.Unlock()
	if err != nil {
		return err
	}
	t.tellHold(ctx)
	return nil
}

// holdIf has the machine hold the session first, which knows its serial. A kill
// before that is remembered takes it back: holdLater.
func (t *dialled) holdIf(ctx context.Context, held bool) error {
	conn, s, err := t.conditionOn(ctx)
	if err != nil {
		return err
	}
	request := wishOf(ctx)
	return t.m.doIf(ctx, conn, control.HoldSession{LocalID: s.LocalID, Held: held, RequestID: request, IfSerial: api.IfSerialOf(ctx)}, request, sessionName(s.ID))
}

// conditionOn is the session that a verb with a condition is about.
func (t *dialled) conditionOn(ctx context.Context) (*control.Conn, *control.Session, error) {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if t.session == nil || t.link.conn == nil {
		return nil, nil, stale(fmt.Sprintf("the session of tunnel %q", t.cfg.Name), api.IfSerialOf(ctx), 0)
	}
	return t.link.conn, t.session, nil
}

// holdLocked stops the tunnel's packets and remembers that, or the other way
// round.
func (t *dialled) holdLocked(held bool, request session.ID) error {
	if held && t.session == nil {
		return &api.Error{Code: api.Failed, Message: fmt.Sprintf("tunnel %q has no session to suspend: it is %v", t.cfg.Name, t.state), Hint: fmt.Sprintf("`tunnelctl up %s` begins one, `tunnelctl down %s` keeps any from beginning", t.cfg.Name, t.cfg.Name)}
	}
	t.saved.Held = held
	if err := t.m.journal.saveTunnel(t.cfg.Name, t.saved); err != nil {
		t.saved.Held = !held
		return &api.Error{Code: api.Failed, Message: fmt.Sprintf("tunnel %q: %v", t.cfg.Name, err)}
	}
	if t.session == nil {
		return nil
	}
	t.life.CheckAt = 0
	if t.dev != nil {
		if err := t.dev.SetGate(t.session.ID, t.gate()); err != nil {
			return &api.Error{Code: api.Failed, Message: fmt.Sprintf("tunnel %q: %v", t.cfg.Name, err)}
		}
	}
	t.set(t.state) // wakes who waits
	t.record(t.session.ID, event.Event{Kind: holdKind(held), Request: request})
	return nil
}

func holdKind(held bool) event.Kind {
	if held {
		return event.SessionHeld
	}
	return event.SessionReleased
}

// gate is what a session of this tunnel has while it is up.
func (t *dialled) gate() engine.Gate {
	if t.saved.Held {
		return engine.Quarantined
	}
	return engine.Open
}

// tellHold tells the gateway what is remembered here; nothing, where it knows.
func (t *dialled) tellHold(ctx context.Context) {
	t.m.mu.Lock()
	conn, s, held := t.link.conn, t.session, t.saved.Held
	t.m.mu.Unlock()
	if conn != nil && s != nil {
		conn.Do(ctx, control.HoldSession{LocalID: s.LocalID, Held: held, RequestID: api.RequestOf(ctx)})
	}
}

// holdLater tells the gateway soon, since a handler may not do it itself. The
// caller holds Manager.mu.
func (l *link) holdLater() {
	for _, t := range l.tunnels {
		if t.session != nil && (t.saved.Held || t.session.Held) {
			l.m.chores.add("hold "+t.cfg.Name, t.tellHold)
		}
	}
}

// shownLocked is the state as `status` shows it: one that is held is suspended.
func (t *dialled) shownLocked() session.State {
	if t.saved.Held && t.session != nil && t.state == session.Established {
		return session.Suspended
	}
	return t.state
}

func (mb *member) shown() session.State {
	if mb.held && mb.state == session.Established {
		return session.Suspended
	}
	return mb.state
}

// gate is what the session has while it is up; a revoked node's is closed.
func (mb *member) gate() engine.Gate {
	switch {
	case mb.network.g.registry.Revoked(mb.nodeID):
		return engine.Closed
	case mb.held, mb.stranger(), mb.limits().direction == nothingPasses:
		return engine.Quarantined
	}
	return engine.Open
}

// holdChanged follows the node's wish.
func (p *peerConn) holdChanged(a control.HoldChanged) {
	g, s := p.g, a.Session
	g.mu.Lock()
	defer g.mu.Unlock()
	mb := g.members.byID[s.ID]
	if mb == nil {
		return
	}
	mb.held = s.Held
	mb.life.CheckAt = 0
	if err := mb.network.dev.SetGate(s.ID, mb.gate()); err != nil {
		g.m.log.Error("gate not set", event.KeySession, s.ID, event.KeyErr, err)
	}
	g.record(mb, event.Event{Kind: holdKind(s.Held), Request: a.RequestID})
}
