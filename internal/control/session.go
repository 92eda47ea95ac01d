package control

import (
	"crypto/hmac"
	"errors"
	"fmt"

	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

func macEqual(a, b [32]byte) bool { return hmac.Equal(a[:], b[:]) }

func (m *Machine) byLocal(id uint32) *Session {
	for _, s := range m.sessions {
		if s.LocalID == id {
			return s
		}
	}
	return nil
}

func (m *Machine) byRemote(id uint32) *Session {
	for _, s := range m.sessions {
		if s.RemoteID == id && id != 0 {
			return s
		}
	}
	return nil
}

// named finds the session a message is about: by the id we chose, which is
// checked against the peer's, or by the peer's alone where ours was not known.
func (m *Machine) named(local, remote uint32) *Session {
	if remote == 0 {
		return m.byRemote(local)
	}
	if s := m.byLocal(remote); s != nil && (s.RemoteID == local || s.RemoteID == 0 || local == 0) {
		return s
	}
	return nil
}

// remove takes s off the connection.
func (m *Machine) remove(s *Session) {
	for i := range m.sessions {
		if m.sessions[i] == s {
			m.sessions = append(m.sessions[:i:i], m.sessions[i+1:]...)
			break
		}
	}
	m.retime()
}

// retime sets the timers of the connection to what its sessions ask for: the
// smallest hello and misses, the longest grace.
func (m *Machine) retime() {
	t, first := m.cfg.Timers, true
	for _, s := range m.sessions {
		if s.State != session.Established && s.State != session.WaitConnect || s.Timers == (wire.Timers{}) { // none given: ours
			continue
		}
		if first {
			t, first = s.Timers, false
			continue
		}
		t.Hello, t.Misses, t.Grace = min(t.Hello, s.Timers.Hello), min(t.Misses, s.Timers.Misses), max(t.Grace, s.Timers.Grace)
	}
	if t == m.rec.Timers {
		return
	}
	m.rec.Timers = t
	m.dirty = true
	if m.cur != nil {
		m.do(Arm{TimerHello, m.helloDelay()})
	}
}

// openSession sends ICRQ.
func (m *Machine) openSession(ev OpenSession) {
	refuse := func(text string) {
		m.do(SessionRefused{ev.Network, ev.Label, wire.Result{Code: wire.CDNCarrierLost, Text: text}, false, ev.RequestID})
	}
	if m.cfg.Role != Initiator || m.cur == nil {
		refuse("the control connection is not established")
		return
	}
	if len(m.sessions) >= m.cfg.MaxSessions {
		refuse(fmt.Sprintf("%d sessions in this control connection already", len(m.sessions)))
		return
	}
	id, err := readID(m.cfg.Rand, func(id uint32) bool { return m.byLocal(id) == nil })
	if err != nil {
		refuse(err.Error())
		return
	}
	s := &Session{
		LocalID: id, State: session.WaitReply, Network: ev.Network, Label: ev.Label, Serial: ev.Serial,
		PrivateKey: ev.PrivateKey, PublicKey: ev.PublicKey, Advertise: ev.Advertise, Life: Life{Expires: ev.Expires.Whole()},
	}
	q, err := m.sessionRequest(s)
	if err != nil {
		refuse(err.Error())
		return
	}
	s.RequestID = m.requestID(ev.RequestID)
	q.RequestID = s.RequestID
	m.sessions = append(m.sessions, s)
	m.send(q)
}

// sessionRequest is the ICRQ for s on the transport in use.
func (m *Machine) sessionRequest(s *Session) (*wire.ICRQ, error) {
	shared, err := s.PrivateKey.X25519(m.cur.shareIn)
	if err != nil {
		return nil, err
	}
	expires := s.Expires
	return &wire.ICRQ{
		LocalID: s.LocalID, Serial: s.Serial, PWType: wire.PWTypeWireGuard, RemoteEnd: s.Network,
		CircuitStatus: wire.CircuitStatus{Active: true, New: true},
		PublicKey:     s.PublicKey, Advertise: s.Advertise, RequestID: s.RequestID, Expires: &expires,
		KeyProof: keyProof(shared, Initiator, m.cur.binding, [2]uint32{s.LocalID, 0}, s.PublicKey, []byte(s.Network)),
	}, nil
}

// icrq takes a request for a session.
func (m *Machine) icrq(q *wire.ICRQ) {
	refuse := func(res wire.Result) { m.send(&wire.CDN{RemoteID: q.LocalID, Result: res, RequestID: q.RequestID}) }
	switch {
	case m.cfg.Role != Responder:
		refuse(wire.Result{Code: wire.CDNFSMError, Text: "an initiator takes no ICRQ"})
		return
	case q.PWType != wire.PWTypeWireGuard:
		refuse(wire.Result{Code: wire.CDNPWType})
		return
	case m.byRemote(q.LocalID) != nil: // RFC 3931, section 7.3: clean up
		m.disconnect(m.byRemote(q.LocalID), wire.Result{Code: wire.CDNError, Error: wire.ErrorSessionID})
		return
	case len(m.sessions) >= m.cfg.MaxSessions:
		refuse(wire.Result{Code: wire.CDNNoFacilities, Error: wire.ErrorResources, Cause: wire.CauseBusy})
		return
	}
	shared, err := m.cur.share.X25519(q.PublicKey)
	if err == nil && !macEqual(q.KeyProof, keyProof(shared, Initiator, m.cur.binding, [2]uint32{q.LocalID, 0}, q.PublicKey, []byte(q.RemoteEnd))) {
		err = errors.New("key proof does not hold")
	}
	if err != nil {
		refuse(wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseKeyProof})
		return
	}
	id, err := readID(m.cfg.Rand, func(id uint32) bool { return m.byLocal(id) == nil })
	if err != nil {
		refuse(wire.Result{Code: wire.CDNNoFacilities, Error: wire.ErrorResources})
		return
	}
	m.sessions = append(m.sessions, &Session{
		LocalID: id, RemoteID: q.LocalID, State: session.Idle, Network: q.RemoteEnd, Serial: q.Serial,
		PeerKey: q.PublicKey, Advertise: q.Advertise, RequestID: q.RequestID,
	})
	m.ask(AskSession{id, q})
}

// granted goes on with a session after the gateway's decision.
func (m *Machine) granted(ev Granted) {
	s := m.byLocal(ev.LocalID)
	if s == nil {
		return
	}
	if ev.Refusal != nil {
		m.remove(s)
		m.send(&wire.CDN{RemoteID: s.RemoteID, Result: *ev.Refusal, RequestID: s.RequestID})
		return
	}
	g := ev.Grant
	psk, err := presharedKey(m.cur.b, g.ID, s.PeerKey, g.PublicKey, g.KeyEpoch)
	if err != nil {
		res := wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseLocal}
		s.ID = g.ID
		m.remove(s)
		m.send(&wire.CDN{RemoteID: s.RemoteID, Result: res, RequestID: s.RequestID})
		m.do(SessionDown{*s, res, false, s.RequestID})
		return
	}
	s.ID, s.PublicKey, s.PrivateKey, s.PresharedKey = g.ID, g.PublicKey, g.PrivateKey, psk
	s.Addresses, s.Peers, s.Routes, s.MTU, s.Timers = g.Addresses, g.Peers, g.Routes, g.MTU, g.Timers
	s.Lifetime, s.Began, s.KeyEpoch, s.Resumes, s.Extended = g.Lifetime.Whole(), g.Began, g.KeyEpoch, g.Resumes, g.Extended
	s.Expires = g.Expires.Whole()
	m.ask(AskSetUp{*s})
}

// setUp goes on with a session whose data plane is ready, or not.
func (m *Machine) setUp(ev SetUp) {
	s := m.byLocal(ev.LocalID)
	if s == nil {
		return
	}
	if ev.Refusal != nil {
		m.remove(s)
		m.send(&wire.CDN{LocalID: s.LocalID, RemoteID: s.RemoteID, Result: *ev.Refusal, RequestID: s.RequestID})
		if m.cfg.Role == Initiator && !s.Rebuild {
			m.do(SessionRefused{s.Network, s.Label, *ev.Refusal, false, s.RequestID})
		} else {
			m.do(SessionDown{*s, *ev.Refusal, false, s.RequestID})
		}
		return
	}
	if m.cfg.Role == Initiator {
		s.State, s.Rebuild = session.Established, false
		s.touch()
		m.retime()
		m.send(&wire.ICCN{LocalID: s.LocalID, RemoteID: s.RemoteID, CircuitStatus: wire.CircuitStatus{Active: true, New: true}})
		m.do(SessionUp{*s})
		if s.Held { // and rebuilt: the ticket does not tell of it
			m.change(&wire.SLI{LocalID: s.LocalID, RemoteID: s.RemoteID, CircuitStatus: &wire.CircuitStatus{}})
		}
		return
	}
	m.reply(s)
}

// reply sends ICRP with the gateway's proof of its key.
func (m *Machine) reply(s *Session) {
	shared, err := s.PrivateKey.X25519(m.cur.shareIn)
	s.PrivateKey = secret.Value{} // it is the network's, and kept there
	if err != nil {
		m.remove(s)
		res := wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseKeyProof}
		m.send(&wire.CDN{RemoteID: s.RemoteID, Result: res, RequestID: s.RequestID})
		m.do(SessionDown{*s, res, false, s.RequestID})
		return
	}
	s.State = session.WaitConnect
	m.retime()
	r := &wire.ICRP{
		LocalID: s.LocalID, RemoteID: s.RemoteID, CircuitStatus: wire.CircuitStatus{Active: true, New: true},
		Session: s.ID, PublicKey: s.PublicKey, KeyEpoch: s.KeyEpoch,
		KeyProof:  keyProof(shared, Responder, m.cur.binding, [2]uint32{s.RemoteID, s.LocalID}, s.PublicKey, append(s.ID[:], s.PeerKey[:]...)),
		Addresses: s.Addresses, Peers: s.Peers, Routes: s.Routes, MTU: s.MTU, Timers: s.Timers, Lifetime: s.Lifetime,
		RequestID: s.RequestID,
	}
	if s.Expires.After > 0 {
		expires := s.Expires
		r.Expires = &expires
	}
	m.send(r)
}

// icrp takes the gateway's grant.
func (m *Machine) icrp(r *wire.ICRP) {
	s := m.named(r.LocalID, r.RemoteID)
	if s == nil {
		// Asked for on a transport that broke, and given up since.
		m.send(&wire.CDN{LocalID: r.RemoteID, RemoteID: r.LocalID, Result: wire.Result{Code: wire.CDNFSMError}})
		return
	}
	if s.State != session.WaitReply {
		m.disconnect(s, wire.Result{Code: wire.CDNFSMError, Text: fmt.Sprintf("ICRP in state %v", s.State)})
		return
	}
	take := m.takeGrant
	if s.Rebuild {
		take = m.takeRebuilt
	}
	if err := take(s, r); err != nil {
		m.disconnect(s, wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseKeyProof, Text: err.Error()})
		return
	}
	if err := s.agreedIn(r); err != nil {
		m.disconnect(s, wire.Result{Code: wire.CDNError, Error: wire.ErrorRange, Cause: wire.CauseLocal, Text: err.Error()})
		return
	}
	m.ask(AskSetUp{*s})
}

// takeGrant verifies the gateway's key and copies what it gives.
func (m *Machine) takeGrant(s *Session, r *wire.ICRP) error {
	shared, err := m.cur.share.X25519(r.PublicKey)
	if err != nil {
		return err
	}
	want := keyProof(shared, Responder, m.cur.binding, [2]uint32{s.LocalID, r.LocalID}, r.PublicKey, append(r.Session[:], s.PublicKey[:]...))
	if !macEqual(want, r.KeyProof) {
		return errors.New("the gateway's key proof does not hold")
	}
	psk, err := presharedKey(m.cur.b, r.Session, s.PublicKey, r.PublicKey, 0)
	if err != nil {
		return err
	}
	s.copyGrant(r, psk)
	return nil
}

// copyGrant takes over what ICRP says.
func (s *Session) copyGrant(r *wire.ICRP, psk secret.Value) {
	s.RemoteID, s.ID, s.PeerKey, s.PresharedKey, s.KeyEpoch = r.LocalID, r.Session, r.PublicKey, psk, r.KeyEpoch
	s.Addresses, s.Peers, s.Routes, s.MTU, s.Timers = r.Addresses, r.Peers, r.Routes, r.MTU, r.Timers
	s.Lifetime = r.Lifetime
}

// iccn completes a session at the gateway.
func (m *Machine) iccn(c *wire.ICCN) {
	s := m.named(c.LocalID, c.RemoteID)
	switch {
	case s == nil: // RFC 3931, section 7.3: ICCN in idle: clean up
	case m.cfg.Role == Responder && s.State == session.WaitConnect:
		s.State = session.Established
		s.touch()
		m.dirty = true
		m.do(SessionUp{*s})
		m.ticketsDue(s)
	default:
		m.disconnect(s, wire.Result{Code: wire.CDNFSMError, Text: fmt.Sprintf("ICCN in state %v", s.State)})
	}
}

// cdn takes the end of a session from the peer.
func (m *Machine) cdn(c *wire.CDN) {
	s := m.named(c.LocalID, c.RemoteID)
	switch {
	case s == nil: // gone already
	case m.askAgain(s, c.Result):
	case s.Rebuild && s.State == session.WaitReply && c.Result.Cause.Advice() == wire.RetryLater:
		m.claimRefused(s, c.Result)
	default:
		m.end(s, c.Result, true, c.RequestID)
	}
}

// disconnect ends a session from this side.
func (m *Machine) disconnect(s *Session, res wire.Result) {
	m.end(s, res, false, session.ID{})
	m.send(&wire.CDN{LocalID: s.LocalID, RemoteID: s.RemoteID, Result: res})
}

// end removes a session and says so once, before anything is sent or saved: the
// handler records the end with the Save that takes the session away.
func (m *Machine) end(s *Session, res wire.Result, remote bool, request session.ID) {
	waiting := s.State == session.WaitReply && !s.Rebuild
	down := SessionDown{m.view(s), res, remote, request}
	m.remove(s)
	m.dirty = true
	if waiting {
		m.do(SessionRefused{s.Network, s.Label, res, remote, s.RequestID})
		return
	}
	m.do(down)
}

func (m *Machine) closeSession(ev CloseSession) {
	s := m.byLocal(ev.LocalID)
	if m.outdated(s, ev.IfSerial, ev.RequestID) || s == nil {
		return
	}
	request := m.requestID(ev.RequestID)
	m.end(s, ev.Result, false, request)
	m.send(&wire.CDN{LocalID: s.LocalID, RemoteID: s.RemoteID, Result: ev.Result, Statistics: ev.Statistics, RequestID: request})
}

// sli takes a change in a live session. Routes, deadlines and stamps are a
// gateway's to tell.
func (m *Machine) sli(c *wire.SLI) {
	s := m.named(c.LocalID, c.RemoteID)
	if s == nil || s.State != session.Established {
		return
	}
	if m.cfg.Role != Initiator && (c.HasRoutes || c.Lifetime != nil || c.Stamp != (wire.Stamp{})) {
		m.disconnect(s, wire.Result{Code: wire.CDNError, Error: wire.ErrorRange, Cause: wire.CauseToken, Text: "routes, deadlines and stamps are the gateway's to tell"})
		return
	}
	m.lifeChanged(s, c)
	if c.Stamp != (wire.Stamp{}) {
		m.do(StampTold{*s, c.Stamp})
	}
	if c.HasRoutes { // a gateway of the release before tells them
		m.changing = &wire.ChangeOffer{RequestID: c.RequestID, HasRoutes: true, Routes: c.Routes}
		m.ask(AskChange{s.with(termsOf(m.changing))})
	}
}

// supersede puts sli in the place of one for the same session that waits for a
// resume and was never sent: a suspended connection keeps one for each session,
// however often it changes meanwhile.
func (m *Machine) supersede(sli *wire.SLI) bool {
	for i, p := range m.rec.Unacked {
		old, ok := p.Message.(*wire.SLI)
		if ok && old.LocalID == sli.LocalID && m.cur == nil && int16(p.Ns-m.unsent) >= 0 {
			again := *p
			merge(sli, old)
			again.Message = sli
			m.rec.Unacked[i] = &again
			m.dirty = true
			return true
		}
	}
	return false
}

func (m *Machine) wen(w *wire.WEN) {
	if s := m.named(w.LocalID, w.RemoteID); s != nil && s.State == session.Established {
		m.do(TroubleReported{*s, w.CircuitErrors})
	}
}

func (m *Machine) reportTrouble(ev ReportTrouble) {
	if s := m.byLocal(ev.LocalID); s != nil && s.State == session.Established {
		m.tell(&wire.WEN{LocalID: s.LocalID, RemoteID: s.RemoteID, CircuitErrors: ev.Errors, Statistics: ev.Statistics})
	}
}

func (m *Machine) renew(ev RenewCertificate) {
	if m.cfg.Role != Initiator || m.cur == nil {
		m.do(CertificateRenewed{ev.RequestID, nil, &wire.Result{Code: wire.StopGeneral, Cause: wire.CauseBusy}})
		return
	}
	m.send(&wire.CertRequest{RequestID: ev.RequestID, CSR: ev.CSR})
}

func (m *Machine) certRequest(p *wire.Packet, q *wire.CertRequest) {
	if m.cfg.Role != Responder {
		m.wrong(p, "only a gateway signs")
		return
	}
	m.ask(AskSign{q.RequestID, q.CSR})
}

func (m *Machine) certReply(p *wire.Packet, r *wire.CertReply) {
	if m.cfg.Role != Initiator {
		m.wrong(p, "a gateway asks for no certificate")
		return
	}
	m.do(CertificateRenewed{r.RequestID, r.Certificate, r.Result})
}
