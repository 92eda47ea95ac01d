package control

import (
	"errors"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// A session may have a lifetime, which both ends agreed on and one of them, the
// refresher, begins anew: docs/protocol.md, "Lifetime and refresher". It is
// agreed in ICRQ and ICRP and again with each refresh, which is an offer:
//
//	wait-reply ──CDN, too short/ICRQ with the floor──► wait-reply, once
//	none ──RefreshSession/CHO──► open ──CHA──► none: refreshed
//	                             open ──CHA, too short/CHO with the floor──► open, once
//
// When it is over is for the handler to see, which has the clocks.

// RefreshSession has the refresher of a session begin its lifetime anew.
type RefreshSession struct {
	LocalID uint32
	After   time.Duration // to ask for
}

// AskRefresh asks the end that does not refresh the session to agree: to no
// longer a lifetime than Expires, with the same refresher.
type AskRefresh struct {
	Session Session
	Expires wire.Expires
}

// Agreed answers AskRefresh. Refusal nil means yes; one may have a Floor.
type Agreed struct {
	LocalID uint32
	Expires wire.Expires
	Refusal *wire.Result
}

// SessionRefreshed: the lifetime of the session begins anew.
type SessionRefreshed struct {
	Session   Session
	RequestID session.ID
}

func (RefreshSession) event()    {}
func (Agreed) event()            {}
func (AskRefresh) action()       {}
func (SessionRefreshed) action() {}

// askRefresh answers AskRefresh with what the handler says.
func (c *Conn) askRefresh(a AskRefresh) Event {
	h, ok := c.h.(ChangeHandler)
	if !ok {
		return Agreed{LocalID: a.Session.LocalID, Refusal: unchangeable()}
	}
	return h.Refresh(a)
}

// as names a role in the words of Session Expires.
func (r Role) as() wire.Refresher {
	if r == Initiator {
		return wire.RefresherNode
	}
	return wire.RefresherGateway
}

func (m *Machine) refreshSession(ev RefreshSession) {
	s := m.byLocal(ev.LocalID)
	if s == nil || s.Expires.After == 0 || s.Expires.Refresher != m.cfg.Role.as() {
		return
	}
	m.refresh(s, ev.After)
}

// refresh sends CHO. Without a transport there is none: the resume will do as well.
func (m *Machine) refresh(s *Session, after time.Duration) {
	e := wire.Expires{After: after, Refresher: m.cfg.Role.as()}.Whole()
	o := Offer{RequestID: m.requestID(session.ID{}), Expires: e}
	if m.cur == nil || m.peerCapabilities&CapOffers == 0 {
		m.notNow(s, o)
		return
	}
	m.offer(s, o, &wire.ChangeOffer{Expires: &e})
}

// mayRefresh reports whether the peer may refresh s like that.
func (m *Machine) mayRefresh(s *Session, e wire.Expires) bool {
	return s.Expires.After > 0 && e.After > 0 && e.Refresher == s.Expires.Refresher && e.Refresher != m.cfg.Role.as()
}

// agreed goes on with the peer's refresh after the handler's decision.
func (m *Machine) agreed(ev Agreed) {
	s, c := m.decided(ev.LocalID, ev.Refusal)
	if s == nil {
		return
	}
	e := ev.Expires.Whole()
	s.Expires = e
	m.answerChange(s, &wire.ChangeAnswer{RequestID: c.RequestID, Expires: &e})
	m.do(SessionRefreshed{*s, c.RequestID})
}

// refreshed takes the answer to a refresh of ours.
func (m *Machine) refreshed(s *Session, o Offer, a *wire.ChangeAnswer) {
	switch {
	case a.Result != nil && !s.Raised && a.Result.Floor > o.Expires.After && m.cur != nil:
		s.Raised = true
		m.refresh(s, a.Result.Floor)
	case a.Result != nil:
		s.Raised = false
		m.do(ChangeRefused{*s, o, *a.Result, true})
	default:
		s.Expires, s.Raised = *a.Expires, false
		m.do(SessionRefreshed{*s, o.RequestID})
	}
}

// askAgain repeats a request whose lifetime was too short with the least that the
// gateway takes, once for each request: false, with nothing done, for what is no
// such refusal.
func (m *Machine) askAgain(s *Session, res wire.Result) bool {
	if s.State != session.WaitReply || res.Cause != wire.CauseTooShort || s.Raised || s.Expires.After == 0 || res.Floor <= s.Expires.After {
		return false
	}
	s.Expires.After, s.Raised = res.Floor, true
	if s.Rebuild {
		m.unclaim(s)
		m.rebuild(s)
		return true
	}
	q, err := m.sessionRequest(s)
	if err == nil {
		m.send(q)
	}
	return err == nil
}

// agreedIn takes from ICRP the lifetime that the gateway agreed to.
func (s *Session) agreedIn(r *wire.ICRP) error {
	switch {
	case r.Expires == nil:
		s.Expires = wire.Expires{}
		return nil
	case !r.Expires.Agrees(s.Expires):
		return errors.New("the gateway has agreed to another lifetime than was asked for")
	}
	s.Expires, s.Raised = *r.Expires, false
	return nil
}
