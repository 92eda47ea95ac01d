package control

import (
	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// TellStamp, at a responder, tells the peer the stamp of the last handshake of
// the data plane that was accepted from it. A peer whose clock went back uses a
// greater one, or no handshake of it would be accepted until its clock has
// caught up.
type TellStamp struct {
	LocalID uint32
	Stamp   wire.Stamp
}

// StampTold: the responder accepted that stamp, and will accept greater ones.
type StampTold struct {
	Session Session
	Stamp   wire.Stamp
}

func (TellStamp) event()  {}
func (StampTold) action() {}

func (m *Machine) tellStamp(ev TellStamp) {
	s := m.byLocal(ev.LocalID)
	if s == nil || m.cfg.Role != Responder || (s.State != session.Established && s.State != session.WaitConnect) {
		return
	}
	m.change(&wire.SLI{LocalID: s.LocalID, RemoteID: s.RemoteID, Stamp: ev.Stamp, RequestID: m.requestID(session.ID{})})
}
