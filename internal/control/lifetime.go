package control

import (
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// HoldSession, at an initiator, asks the peer to hold the session of this local
// id, or to go on with it: everything is kept, no packet passes.
type HoldSession struct {
	LocalID   uint32
	Held      bool
	RequestID session.ID // as in OpenSession
	IfSerial  uint64     // as in CloseSession
}

// ChangeLifetime, at a responder, tells the peer what ends the session of this
// local id, in the place of what was told before.
type ChangeLifetime struct {
	LocalID   uint32
	Lifetime  wire.Lifetime
	RequestID session.ID // as in OpenSession
}

// Notices: what the peer changed.
type (
	// HoldChanged: the initiator holds the session, or goes on with it.
	HoldChanged struct {
		Session   Session
		RequestID session.ID
	}
	// LifetimeChanged: the responder set other deadlines.
	LifetimeChanged struct {
		Session   Session
		RequestID session.ID
	}
)

func (HoldSession) event()      {}
func (ChangeLifetime) event()   {}
func (HoldChanged) action()     {}
func (LifetimeChanged) action() {}

// Life is what a Session keeps of its life: docs/protocol.md, "Life of a
// session".
type Life struct {
	Held     bool          // the initiator's wish; known to both ends
	Lifetime wire.Lifetime // as the responder told it last
	Began    time.Time     // wall clock; a responder's alone
	Extended time.Duration `json:",omitempty"` // how much longer than its network's Absolute is; a responder's alone
	Expires  wire.Expires  `json:",omitzero"`  // agreed; in wait-reply, asked for
	Raised   bool          `json:",omitempty"` // asked for again with the gateway's floor
}

func (m *Machine) holdSession(ev HoldSession) {
	s := m.byLocal(ev.LocalID)
	if m.outdated(s, ev.IfSerial, ev.RequestID) || s == nil || m.cfg.Role != Initiator || s.State != session.Established || s.Held == ev.Held {
		return
	}
	s.Held = ev.Held
	s.touch()
	m.change(&wire.SLI{LocalID: s.LocalID, RemoteID: s.RemoteID, CircuitStatus: &wire.CircuitStatus{Active: !ev.Held}, RequestID: m.requestID(ev.RequestID)})
}

func (m *Machine) changeLifetime(ev ChangeLifetime) {
	s := m.byLocal(ev.LocalID)
	if s == nil || m.cfg.Role != Responder || (s.State != session.Established && s.State != session.WaitConnect) {
		return
	}
	s.Lifetime = ev.Lifetime.Whole()
	s.touch()
	m.change(&wire.SLI{LocalID: s.LocalID, RemoteID: s.RemoteID, Lifetime: &ev.Lifetime, RequestID: m.requestID(ev.RequestID)})
}

// change sends a change of a session, or adds it to the one that waits for a
// resume.
func (m *Machine) change(sli *wire.SLI) {
	if !m.supersede(sli) {
		m.send(sli)
	}
}

// merge takes over from an older change what this one leaves as it is.
func merge(sli, older *wire.SLI) {
	if sli.Lifetime == nil {
		sli.Lifetime = older.Lifetime
	}
	if sli.Stamp == (wire.Stamp{}) {
		sli.Stamp = older.Stamp
	}
}

// lifeChanged takes from an SLI what it says of the session's life. The status
// of the circuit is the initiator's to tell; a responder's says nothing.
func (m *Machine) lifeChanged(s *Session, c *wire.SLI) {
	if c.Lifetime != nil {
		s.Lifetime = *c.Lifetime
		s.touch()
		m.dirty = true
		m.do(LifetimeChanged{*s, c.RequestID})
	}
	if c.CircuitStatus != nil && m.cfg.Role == Responder && s.Held == c.CircuitStatus.Active {
		s.Held = !c.CircuitStatus.Active
		s.touch()
		m.dirty = true
		m.do(HoldChanged{*s, c.RequestID})
	}
}
