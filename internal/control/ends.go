package control

import (
	"errors"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// lose suspends the connection: its transport is of no more use. What was not
// established when it was lost begins anew (RFC 4951, section 3).
func (m *Machine) lose(err error) {
	m.do(Drop{m.cur.id, err}, Disarm{TimerHello}, Arm{TimerGrace, m.rec.Timers.Grace})
	m.cur = nil
	m.unsent = m.rec.Ns
	m.state = session.Suspended
	m.dirty = true
	for _, s := range append([]*Session(nil), m.sessions...) {
		if s.State == session.WaitReply && !s.Rebuild {
			m.remove(s)
			m.do(SessionRefused{s.Network, s.Label, wire.Result{Code: wire.CDNCarrierLost}, false, s.RequestID})
		}
	}
	m.do(WasSuspended{err})
	if m.rec.Unrecoverable {
		m.over(wire.Result{Code: wire.StopGeneral, Text: "the peer cannot recover"}, false, err, session.ID{})
	}
}

// saveFailed gives up every transport: nothing may be said to the peer that is
// not on disk. The record is saved with the next resume. What followed the Save
// is given again, all but what the peer would have heard: it has happened to
// this machine, and transports and timers have to follow.
func (m *Machine) saveFailed(ev SaveFailed) {
	saved := false
	for _, a := range m.last {
		if _, ok := a.(Save); ok {
			saved = true
		} else if _, said := a.(Send); saved && !said {
			m.do(a)
		}
	}
	if d, ok := errors.AsType[*Denied](ev.Err); ok {
		m.dirty = false
		m.stop(d.Result, ev.Err)
		return
	}
	res := wire.Result{Code: wire.StopGeneral, Cause: wire.CauseStore}
	if m.next != nil {
		m.abandon(m.next, &res, ev.Err)
	}
	if m.state == session.Closed {
		return
	}
	if m.cur != nil {
		m.lose(ev.Err)
	}
	m.dirty = false // the next step that changes anything writes all of it
}

// stop ends the connection from this side, because of err.
func (m *Machine) stop(res wire.Result, err error) { m.sayStop(res, err, session.ID{}) }

// stopOn ends the connection from this side, because somebody wants that.
func (m *Machine) stopOn(ev Stop) { m.sayStop(ev.Result, nil, m.requestID(ev.RequestID)) }

func (m *Machine) sayStop(res wire.Result, err error, request session.ID) {
	msg := &wire.StopCCN{AssignedID: m.rec.LocalID, Result: res, RequestID: request}
	if m.cur != nil {
		m.tell(msg)
	} else if m.next != nil && m.next.phase != waitRequest {
		m.do(Send{m.next.id, m.setupPacket(m.next, msg)})
	}
	m.over(res, false, err, request)
}

// stopped ends the connection because the peer said so.
func (m *Machine) stopped(c *wire.StopCCN) { m.over(c.Result, true, nil, c.RequestID) }

// requestID is the id of a wish: its own, or a fresh one for a wish of ours that
// has none.
func (m *Machine) requestID(id session.ID) session.ID {
	if !id.IsZero() {
		return id
	}
	id, _ = session.ReadID(m.cfg.Rand) // without one the message still says what is wanted
	return id
}

// over clears everything: no session of the connection remains.
func (m *Machine) over(res wire.Result, remote bool, err error, request session.ID) {
	for len(m.sessions) > 0 {
		s := m.sessions[0]
		m.remove(s)
		if s.State == session.WaitReply && !s.Rebuild {
			m.do(SessionRefused{s.Network, s.Label, res, remote, s.RequestID})
			continue
		}
		m.do(SessionDown{m.view(s), res, remote, request})
	}
	m.state = session.Closed
	m.do(Forget{})
	for _, l := range []*link{m.next, m.cur} {
		if l != nil {
			m.do(Drop{l.id, err})
		}
	}
	m.cur, m.next = nil, nil
	m.do(Disarm{TimerSetup}, Disarm{TimerHello}, Disarm{TimerGrace}, Ended{res, remote, err, request})
}

// refuseWhenClosed takes away transports that come too late and answers local
// wishes.
func (m *Machine) refuseWhenClosed(ev Event) []Action {
	switch ev := ev.(type) {
	case Attached:
		m.do(Drop{ev.Transport, ErrClosed})
	case OpenSession:
		m.do(SessionRefused{ev.Network, ev.Label, wire.Result{Code: wire.CDNCarrierLost}, false, ev.RequestID})
	case RenewCertificate:
		m.renew(ev)
	}
	return m.out
}
