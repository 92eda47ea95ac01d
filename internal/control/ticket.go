package control

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// Tickets: docs/protocol.md, "Tickets". A gateway gives the node what it has of
// each session, sealed. When nothing is there to resume any more, the node
// begins the connection anew and claims its sessions with them:
//
//	established ──resume refused, cause 9──► idle (Rebuild) ──connection set up/ICRQ──► wait-reply
//	wait-reply ──ICRP/ICCN──► established       wait-reply ──CDN, retry later──► idle (Rebuild)
//	wait-reply ──CDN, anything else──► gone
//
// For others such a session is suspended until it is established again.

// Capability bits (AVP v2).
const (
	CapTickets uint32 = 1 << iota // keeps tickets
	CapDrain                      // reads DRN
	CapOffers                     // reads routes and refreshes in CHO
)

// ourCapabilities are those of this version.
const ourCapabilities = CapTickets | CapDrain | CapOffers

// RebuildSession asks an initiator to claim a session once more that the gateway
// did not rebuild when it was asked before.
type RebuildSession struct{ LocalID uint32 }

// Ticketed answers AskTicket. No ticket: the session has none from now on.
type Ticketed struct {
	LocalID uint32
	Ticket  []byte
}

// AskTicket asks a gateway for a ticket of the session.
type AskTicket struct{ Session Session }

// RebuildRefused: the gateway does not rebuild the session now; RebuildSession
// asks again.
type RebuildRefused struct {
	Session Session
	Result  wire.Result
}

func (RebuildSession) event()  {}
func (Ticketed) event()        {}
func (AskTicket) action()      {}
func (RebuildRefused) action() {}

// TicketHandler is what the Handler of a gateway implements, too, if
// Config.Tickets is set.
type TicketHandler interface {
	// Ticket seals what a session is; nil where it gets none.
	Ticket(Session) []byte
}

func (c *Conn) askTicket(a AskTicket) Event {
	h, ok := c.h.(TicketHandler)
	if !ok {
		return Ticketed{LocalID: a.Session.LocalID}
	}
	return Ticketed{a.Session.LocalID, h.Ticket(a.Session)}
}

// Claims is what a Session keeps for its rebuilding; all of it an initiator's.
type Claims struct {
	Ticket     secret.Value // the newest that the gateway gave
	Rebuild    bool         // the gateway does not know it any more
	ClaimEpoch uint32       // of the last claim
	Claim      secret.Value // while that is not answered: binding, agreed secret and PSK of its transport
}

// gives reports whether this end gives the peer tickets.
func (m *Machine) gives() bool {
	return m.cfg.Role == Responder && m.cfg.Tickets && m.peerCapabilities&CapTickets != 0
}

// ticketsDue has those sessions given a ticket in this step, and all of them
// again before it is too old: it lives no longer than the grace.
func (m *Machine) ticketsDue(sessions ...*Session) {
	if !m.gives() {
		return
	}
	for _, s := range sessions {
		m.due = append(m.due, s.LocalID)
	}
	often := m.rec.Timers.Grace
	for _, s := range m.sessions {
		if s.Timers.Grace > 0 {
			often = min(often, s.Timers.Grace)
		}
	}
	m.do(Arm{TimerTicket, max(often/3, time.Second)})
}

// askTickets asks for the tickets that are due, one after the other. What else
// there is to do waits, so that all of it is saved and sent at once.
func (m *Machine) askTickets() (asked bool) {
	for m.cur != nil && len(m.due) > 0 {
		s := m.byLocal(m.due[0])
		m.due = m.due[1:]
		if s != nil && s.State == session.Established {
			m.held, m.out = m.out, nil
			m.ask(AskTicket{*s})
			return true
		}
	}
	m.due = nil
	return false
}

// ticketed sends TKT.
func (m *Machine) ticketed(ev Ticketed) {
	m.out, m.held = m.held, nil
	if s := m.byLocal(ev.LocalID); s != nil && len(ev.Ticket) > 0 {
		m.send(&wire.Ticket{LocalID: s.LocalID, RemoteID: s.RemoteID, Ticket: ev.Ticket})
	}
}

// ticket keeps a ticket at the node.
func (m *Machine) ticket(p *wire.Packet, t *wire.Ticket) {
	if m.cfg.Role != Initiator {
		m.wrong(p, "only a gateway gives tickets")
		return
	}
	if s := m.named(t.LocalID, t.RemoteID); s != nil && s.State == session.Established {
		s.Ticket = secret.New(t.Ticket)
	}
}

// startOver takes a connection that the gateway does not know back to its
// beginning, with the sessions that have a ticket. False, with nothing done, if
// none has.
func (m *Machine) startOver(l *link, res wire.Result) bool {
	claims := func(s *Session) bool { return !s.Ticket.IsZero() && (s.State == session.Established || s.Rebuild) }
	if m.cfg.Role != Initiator || m.rec.Anew || !slices.ContainsFunc(m.sessions, claims) {
		return false
	}
	err := errors.New("the gateway has lost the connection: it is begun anew")
	if m.cur != nil {
		m.lose(err)
	}
	r := &m.rec
	r.RemoteID, r.PeerBootID, r.Ns, r.Nr, r.Unacked = 0, session.ID{}, 0, 0, nil
	r.Generation, r.ResumeKey, r.NextKey, r.Attempt, r.Anew = 0, secret.Value{}, secret.Value{}, 0, true
	r.Serial, r.Major = 0, 0
	m.unsent, m.dirty = 0, true
	for _, s := range slices.Clone(m.sessions) {
		if claims(s) {
			m.unclaim(s)
		} else {
			m.end(s, res, true, session.ID{})
		}
	}
	m.abandon(l, nil, err)
	return true
}

// unclaim makes a session one that is to be claimed. What was open of a change
// is over; the epoch of one of keys counts as used.
func (m *Machine) unclaim(s *Session) {
	s.ClaimEpoch = max(s.ClaimEpoch, s.KeyEpoch)
	if !s.NextPresharedKey.IsZero() || !s.OfferSecret.IsZero() {
		s.ClaimEpoch, s.OfferSecret = max(s.ClaimEpoch, s.KeyEpoch+1), secret.Value{}
		m.rekeyFailed(s, wire.Result{Code: wire.CDNCarrierLost}, false)
	}
	if o := s.Offer; o != nil {
		s.Offer = nil
		m.do(ChangeRefused{m.view(s), *o, wire.Result{Code: wire.CDNCarrierLost}, false})
	}
	s.State, s.RemoteID, s.Rebuild, s.Claim = session.Idle, 0, true, secret.Value{}
	m.dirty = true
}

// claimAll claims what a connection that was begun anew brought along.
func (m *Machine) claimAll() {
	for _, s := range slices.Clone(m.sessions) {
		m.rebuild(s)
	}
}

func (m *Machine) rebuildSession(ev RebuildSession) {
	if s := m.byLocal(ev.LocalID); s != nil && m.cur != nil {
		m.rebuild(s)
	}
}

// rebuild sends ICRQ with a session's ticket.
func (m *Machine) rebuild(s *Session) {
	if !s.Rebuild || s.State != session.Idle {
		return
	}
	q, err := m.claim(s)
	if err != nil {
		m.end(s, wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseKeyProof, Text: err.Error()}, false, session.ID{})
		return
	}
	s.State = session.WaitReply
	m.send(q)
}

// claim makes the request for a session on the transport in use. Everything that
// its answer is checked with is kept: that may come after a resume.
func (m *Machine) claim(s *Session) (*wire.ICRQ, error) {
	ours, err := s.PrivateKey.X25519(m.cur.shareIn)
	if err != nil {
		return nil, err
	}
	theirs, err := m.cur.share.X25519(s.PeerKey)
	if err != nil {
		return nil, err
	}
	s.ClaimEpoch++
	psk, err := presharedKey(m.cur.b, s.ID, s.PublicKey, s.PeerKey, s.ClaimEpoch)
	if err != nil {
		return nil, err
	}
	s.Claim = secret.New(slices.Concat(m.cur.binding, theirs, psk.Reveal()))
	expires := s.Expires
	return &wire.ICRQ{
		LocalID: s.LocalID, Serial: s.Serial, PWType: wire.PWTypeWireGuard, RemoteEnd: s.Network,
		CircuitStatus: wire.CircuitStatus{Active: true}, PublicKey: s.PublicKey, Advertise: s.Advertise,
		Ticket: s.Ticket.Reveal(), KeyEpoch: s.ClaimEpoch, RequestID: s.RequestID, Expires: &expires,
		KeyProof: keyProof(ours, Initiator, m.cur.binding, [2]uint32{s.LocalID, 0}, s.PublicKey, []byte(s.Network)),
	}, nil
}

// claimRefused takes a claim back that the gateway does not grant now. One that was
// made on an earlier transport is made anew on this one at once: its proof could
// not hold. That the gateway's cursor does not have it would prove nothing, since
// what the earlier transport carried may have come after that was written.
func (m *Machine) claimRefused(s *Session, res wire.Result) {
	stale := res.Cause == wire.CauseKeyProof && !bytes.HasPrefix(s.Claim.Reveal(), m.cur.binding)
	m.unclaim(s)
	if stale {
		m.rebuild(s)
		return
	}
	m.do(RebuildRefused{m.view(s), res})
}

// takeRebuilt verifies that the gateway has rebuilt the very session, and copies
// what it says of it.
func (m *Machine) takeRebuilt(s *Session, r *wire.ICRP) error {
	claim := s.Claim.Reveal()
	if len(claim) != 3*keySize {
		return errors.New("nothing was claimed")
	}
	binding, shared, psk := claim[:keySize], claim[keySize:2*keySize], claim[2*keySize:]
	if r.Session != s.ID || r.PublicKey != s.PeerKey || r.KeyEpoch != s.ClaimEpoch || !slices.Equal(r.Addresses, s.Addresses) {
		return errors.New("the gateway has rebuilt another session")
	}
	want := keyProof(shared, Responder, binding, [2]uint32{s.LocalID, r.LocalID}, r.PublicKey, append(r.Session[:], s.PublicKey[:]...))
	if !macEqual(want, r.KeyProof) {
		return errors.New("the gateway's key proof does not hold")
	}
	s.Ticket, s.Claim = secret.Value{}, secret.Value{} // it is used
	s.Resumes++
	s.copyGrant(r, secret.New(psk))
	return nil
}
