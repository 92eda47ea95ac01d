package control

import (
	"fmt"
	"net/netip"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// Changes of a live session: docs/protocol.md, "Changes of a live session". One
// end offers, nothing changes, the other takes the terms and answers, or
// refuses. Each end has one offer of a session open at most. Who may offer what
// is fixed by the role: docs/protocol.md, "Tokens".
//
//	none ──OfferChange, ExtendSession/CHO──► open ──CHA──► none, the terms hold
//	                                         open ──CHA with a result──► none, nothing has changed
//
// A refresh is an offer, too: refresh.go.

// Terms are what of a session's grant may change while it lives. Zero: it stays.
type Terms struct {
	Addresses []netip.Addr // the node's
	Peers     []netip.Addr // the gateway's, beside Addresses
	MTU       uint16
	Timers    wire.Timers
	HasRoutes bool           `json:",omitempty"` // Routes, also when empty, are among them
	Routes    []netip.Prefix `json:",omitempty"`
}

// An Offer is one that is not answered. Terms are a responder's, Left is an
// initiator's: what it asks to be left of the session's life. Expires is a
// refresher's. Only one of the three is there.
type Offer struct {
	RequestID session.ID
	Terms
	Left    time.Duration `json:",omitempty"`
	Expires wire.Expires  `json:",omitzero"`
}

// OfferChange, at a responder, offers other terms of the session of this local
// id.
type OfferChange struct {
	LocalID uint32
	Terms
	RequestID session.ID // as in OpenSession
}

// ExtendSession, at an initiator, asks for a longer life of the session of this
// local id: that so much is left.
type ExtendSession struct {
	LocalID   uint32
	Left      time.Duration
	RequestID session.ID // as in OpenSession
	IfSerial  uint64     // as in CloseSession
}

// Questions about offers of the peer. Refusal nil in the answer means yes.
type (
	// AskChange asks a node to take the terms that Session has: before the
	// answer nothing has changed, after it the terms are in force.
	AskChange struct{ Session Session }
	// Changed answers AskChange.
	Changed struct {
		LocalID uint32
		Refusal *wire.Result
	}
	// AskExtend asks a gateway whether so much may be left of the session's life.
	AskExtend struct {
		Session Session
		Left    time.Duration
	}
	// Extended answers AskExtend: Lifetime as ChangeLifetime tells it, By how much
	// longer than the network's the session's life is, in all.
	Extended struct {
		LocalID  uint32
		Lifetime wire.Lifetime
		By       time.Duration
		Refusal  *wire.Result
	}
)

// Notices of changes.
type (
	// TermsChanged: the session has the terms that were offered.
	TermsChanged struct {
		Session   Session
		Terms     Terms
		RequestID session.ID
	}
	// SessionExtended: the session may live longer.
	SessionExtended struct {
		Session   Session
		RequestID session.ID
	}
	// ChangeRefused: nothing has changed. Remote says that it was the peer who
	// refused; Offer is what was refused.
	ChangeRefused struct {
		Session Session
		Offer   Offer
		Result  wire.Result
		Remote  bool
	}
)

func (OfferChange) event()      {}
func (ExtendSession) event()    {}
func (Changed) event()          {}
func (Extended) event()         {}
func (AskChange) action()       {}
func (AskExtend) action()       {}
func (TermsChanged) action()    {}
func (SessionExtended) action() {}
func (ChangeRefused) action()   {}

// ChangeHandler is what a Handler implements, too, if its sessions may change
// while they live; for any other an offer is refused. A node is asked to
// Change, a gateway to Extend.
type ChangeHandler interface {
	// Change puts the terms of the session into force. A result that is not nil
	// refuses, and nothing has changed.
	Change(Session) *wire.Result
	// Extend decides about AskExtend.
	Extend(AskExtend) Extended
	// Refresh decides about AskRefresh, which the end is asked that does not
	// refresh the session.
	Refresh(AskRefresh) Agreed
}

// askChange answers AskChange with what the handler says.
func (c *Conn) askChange(a AskChange) Event {
	h, ok := c.h.(ChangeHandler)
	if !ok {
		return Changed{a.Session.LocalID, unchangeable()}
	}
	return Changed{a.Session.LocalID, h.Change(a.Session)}
}

// askExtend answers AskExtend with what the handler says.
func (c *Conn) askExtend(a AskExtend) Event {
	h, ok := c.h.(ChangeHandler)
	if !ok {
		return Extended{LocalID: a.Session.LocalID, Refusal: unchangeable()}
	}
	return h.Extend(a)
}

func unchangeable() *wire.Result {
	return &wire.Result{Code: wire.CDNAdministrative, Text: "sessions are not changed here"}
}

// with is the session under other terms.
func (s Session) with(t Terms) Session {
	if len(t.Addresses) > 0 {
		s.Addresses, s.Peers = t.Addresses, t.Peers
	}
	if t.MTU != 0 {
		s.MTU = t.MTU
	}
	if t.Timers != (wire.Timers{}) {
		s.Timers = t.Timers
	}
	if t.HasRoutes {
		s.Routes = t.Routes
	}
	return s
}

// offerChange sends CHO with a gateway's terms. Routes are offered to a peer that
// is known to read them there, so not without a transport.
func (m *Machine) offerChange(ev OfferChange) {
	s := m.byLocal(ev.LocalID)
	if s == nil || m.cfg.Role != Responder {
		return
	}
	o := Offer{RequestID: m.requestID(ev.RequestID), Terms: ev.Terms}
	switch {
	case ev.HasRoutes && m.cur == nil:
		m.notNow(s, o)
	case ev.HasRoutes && m.peerCapabilities&CapOffers == 0:
		m.tellRoutes(s, o)
	default:
		m.offer(s, o, &wire.ChangeOffer{
			Addresses: ev.Addresses, Peers: ev.Peers, MTU: ev.MTU, Timers: ev.Timers, HasRoutes: ev.HasRoutes, Routes: ev.Routes,
		})
	}
}

// tellRoutes gives routes to a node of the release before, which takes them
// without a word.
func (m *Machine) tellRoutes(s *Session, o Offer) {
	if s.State != session.Established {
		m.notNow(s, o)
		return
	}
	s.Routes = o.Routes
	s.touch()
	m.send(&wire.SLI{LocalID: s.LocalID, RemoteID: s.RemoteID, HasRoutes: true, Routes: o.Routes, RequestID: o.RequestID})
	m.do(TermsChanged{*s, o.Terms, o.RequestID})
}

// notNow refuses to make an offer of ours.
func (m *Machine) notNow(s *Session, o Offer) {
	m.do(ChangeRefused{m.view(s), o, wire.Result{Code: wire.CDNNoFacilities, Cause: wire.CauseChanging}, false})
}

// extendSession sends CHO with a node's wish.
func (m *Machine) extendSession(ev ExtendSession) {
	s := m.byLocal(ev.LocalID)
	if !m.outdated(s, ev.IfSerial, ev.RequestID) && s != nil && m.cfg.Role == Initiator {
		m.offer(s, Offer{RequestID: m.requestID(ev.RequestID), Left: ev.Left}, &wire.ChangeOffer{Lifetime: &wire.Lifetime{Absolute: ev.Left}})
	}
}

func (m *Machine) offer(s *Session, o Offer, msg *wire.ChangeOffer) {
	if s.State != session.Established || s.Offer != nil {
		m.notNow(s, o)
		return
	}
	s.Offer = &o
	if o.Expires.After == 0 {
		s.touch()
	}
	msg.LocalID, msg.RemoteID, msg.RequestID = s.LocalID, s.RemoteID, o.RequestID
	m.send(msg)
}

// changeOffer takes CHO. What is not the sender's to change is refused as such,
// whatever else the offer has.
func (m *Machine) changeOffer(c *wire.ChangeOffer) {
	s := m.named(c.LocalID, c.RemoteID)
	switch {
	case s == nil: // ended meanwhile
	case s.State != session.Established:
		m.disconnect(s, wire.Result{Code: wire.CDNFSMError, Text: fmt.Sprintf("CHO in state %v", s.State)})
	case !m.mayOffer(s, c):
		m.answerChange(s, &wire.ChangeAnswer{RequestID: c.RequestID, Result: &wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseToken}})
	case c.Expires != nil:
		m.changing = c
		m.ask(AskRefresh{*s, *c.Expires})
	case c.Lifetime != nil:
		m.changing = c
		m.ask(AskExtend{*s, c.Lifetime.Absolute})
	default:
		m.changing = c
		m.ask(AskChange{s.with(termsOf(c))})
	}
}

// mayOffer reports whether what the peer offers is its to offer: a gateway's
// terms, a node's longer life or a refresher's refresh, and nothing beside.
func (m *Machine) mayOffer(s *Session, c *wire.ChangeOffer) bool {
	terms := termsOf(c).Any()
	switch {
	case c.Expires != nil:
		return !terms && c.Lifetime == nil && m.mayRefresh(s, *c.Expires)
	case c.Lifetime != nil:
		return !terms && m.cfg.Role == Responder
	default:
		return m.cfg.Role == Initiator
	}
}

// Any reports whether there is a term at all.
func (t Terms) Any() bool {
	return len(t.Addresses) > 0 || t.MTU != 0 || t.Timers != (wire.Timers{}) || t.HasRoutes
}

func termsOf(c *wire.ChangeOffer) Terms {
	return Terms{Addresses: c.Addresses, Peers: c.Peers, MTU: c.MTU, Timers: c.Timers, HasRoutes: c.HasRoutes, Routes: c.Routes}
}

// changed goes on with a gateway's offer after the node's decision. One without
// a name was told by SLI and gets no answer.
func (m *Machine) changed(ev Changed) {
	s, c := m.byLocal(ev.LocalID), m.changing
	m.changing = nil
	if s == nil || c == nil {
		return
	}
	if ev.Refusal == nil {
		*s = s.with(termsOf(c))
		s.touch()
		m.retime()
	}
	if c.LocalID != 0 {
		m.answerChange(s, &wire.ChangeAnswer{RequestID: c.RequestID, Result: ev.Refusal})
	}
	if ev.Refusal != nil {
		m.do(ChangeRefused{*s, Offer{RequestID: c.RequestID, Terms: termsOf(c)}, *ev.Refusal, false})
		return
	}
	m.do(TermsChanged{*s, termsOf(c), c.RequestID})
}

// decided is what the handler has decided about; nil where there is nothing to go
// on with: it has refused, which is answered here, or the session is gone.
func (m *Machine) decided(id uint32, refusal *wire.Result) (*Session, *wire.ChangeOffer) {
	s, c := m.byLocal(id), m.changing
	m.changing = nil
	if s == nil || c == nil {
		return nil, nil
	}
	if refusal != nil {
		m.answerChange(s, &wire.ChangeAnswer{RequestID: c.RequestID, Result: refusal})
		return nil, nil
	}
	return s, c
}

// extended goes on with a node's wish after the gateway's decision.
func (m *Machine) extended(ev Extended) {
	s, c := m.decided(ev.LocalID, ev.Refusal)
	if s == nil {
		return
	}
	s.Lifetime, s.Extended = ev.Lifetime.Whole(), ev.By
	s.touch()
	m.answerChange(s, &wire.ChangeAnswer{RequestID: c.RequestID, Lifetime: &ev.Lifetime})
	m.do(SessionExtended{*s, c.RequestID})
	m.ticketsDue(s)
}

// answerChange sends CHA.
func (m *Machine) answerChange(s *Session, a *wire.ChangeAnswer) {
	a.LocalID, a.RemoteID = s.LocalID, s.RemoteID
	m.send(a)
}

// answeredBy reports whether a, which refuses nothing, says what o asked.
func (o *Offer) answeredBy(a *wire.ChangeAnswer) bool {
	if o.Expires.After > 0 {
		return a.Lifetime == nil && a.Expires != nil && a.Expires.Agrees(o.Expires)
	}
	return a.Expires == nil && (o.Left > 0) == (a.Lifetime != nil)
}

// changeAnswer takes CHA: the terms of our offer hold, or nothing has changed.
func (m *Machine) changeAnswer(a *wire.ChangeAnswer) {
	s := m.named(a.LocalID, a.RemoteID)
	switch {
	case s == nil: // ended meanwhile
		return
	case s.Offer == nil || s.Offer.RequestID != a.RequestID || a.Result == nil && !s.Offer.answeredBy(a):
		m.disconnect(s, wire.Result{Code: wire.CDNFSMError, Text: fmt.Sprintf("CHA in state %v that answers no offer", s.State)})
		return
	}
	o := *s.Offer
	s.Offer = nil
	m.dirty = true
	if o.Expires.After == 0 {
		s.touch()
	}
	switch {
	case o.Expires.After > 0:
		m.refreshed(s, o, a)
	case a.Result != nil:
		m.do(ChangeRefused{*s, o, *a.Result, true})
	case a.Lifetime != nil:
		s.Lifetime = *a.Lifetime
		m.do(SessionExtended{*s, o.RequestID})
	default:
		*s = s.with(o.Terms)
		m.retime()
		m.do(TermsChanged{*s, o.Terms, o.RequestID})
		m.ticketsDue(s) // the one that the node has tells of the terms before
	}
}
