package control

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// Errors that end a transport or a connection.
var (
	ErrPeerSilent = errors.New("control: peer is silent")
	ErrClosed     = errors.New("control: connection is closed")
	errReplaced   = errors.New("control: a newer transport took over")
)

// attached begins the set-up of a transport: the first of the connection, or
// one to resume it on.
func (m *Machine) attached(ev Attached) {
	l, err := m.newLink(ev)
	if err != nil {
		m.do(Drop{ev.Transport, err})
		return
	}
	if m.next != nil {
		m.abandon(m.next, nil, errReplaced)
		if m.state == session.Closed {
			m.do(Drop{ev.Transport, ErrClosed})
			return
		}
	}
	m.next = l
	m.do(Arm{TimerSetup, m.cfg.SetupTimeout})
	if m.cfg.Role == Initiator {
		m.request(l)
	}
}

// resuming reports whether the connection exists and is to be continued.
func (m *Machine) resuming() bool {
	return m.state == session.Suspended || m.state == session.Established
}

// request sends SCCRQ on a fresh link, with the proof of a resume where there
// is something to resume.
func (m *Machine) request(l *link) {
	l.phase = waitReply
	q := &wire.SCCRQ{
		HostName: m.cfg.HostName, RouterID: m.cfg.RouterID, AssignedID: m.rec.LocalID,
		Pseudowires: []uint16{wire.PWTypeWireGuard}, Profile: m.profile(l), Failover: m.failover(),
	}
	switch {
	case m.resuming() && !m.rec.Anew:
		m.rec.Attempt++ // journalled before it is sent
		m.dirty = true
		q.Recovery = &wire.Recovery{LocalID: m.rec.LocalID, RemoteID: m.rec.RemoteID}
		q.RecoveryBootID = m.rec.PeerBootID
		q.Cursor = &wire.Cursor{Ns: m.rec.Ns, Nr: m.rec.Nr}
		q.Proof = &wire.Proof{Generation: m.rec.Generation, Attempt: m.rec.Attempt}
		q.Proof.MAC = resumeMAC(m.rec.ResumeKey, Initiator, l.b, l.binding, true, *q.Recovery, q.RecoveryBootID, *q.Proof, *q.Cursor)
	case !m.resuming():
		m.state = session.WaitCtlReply
	}
	m.do(Send{l.id, m.setupPacket(l, q)})
}

func (m *Machine) profile(l *link) wire.Profile {
	return wire.Profile{Version: wire.ProtocolVersion, Capabilities: ourCapabilities, BootID: m.cfg.BootID, KeyShare: l.shareOut}
}

func (m *Machine) failover() *wire.Failover {
	return &wire.Failover{Control: true, RecoveryTime: m.rec.Timers.Grace}
}

// setupPacket numbers a message of the set-up: it counts for itself, from 0,
// also when it resumes a connection whose own numbers then go on.
func (m *Machine) setupPacket(l *link, msg wire.Message) *wire.Packet {
	p := &wire.Packet{Message: msg}
	switch msg.(type) {
	case *wire.SCCRP:
		p.ConnID, p.Nr = l.request.AssignedID, 1
	case *wire.SCCCN:
		p.ConnID, p.Ns, p.Nr = m.rec.RemoteID, 1, 1
	case *wire.StopCCN:
		p.ConnID = m.rec.RemoteID
		if l.request != nil {
			p.ConnID, p.Nr = l.request.AssignedID, 1
		}
	}
	return p
}

// setupMessage takes a message on a link that does not carry the connection yet.
func (m *Machine) setupMessage(l *link, p *wire.Packet) {
	switch msg := p.Message.(type) {
	case *wire.SCCRQ:
		if l.phase == waitRequest && m.cfg.Role == Responder {
			m.sccrq(l, msg)
			return
		}
	case *wire.SCCRP:
		if l.phase == waitReply && p.ConnID == m.rec.LocalID {
			m.sccrp(l, msg)
			return
		}
	case *wire.SCCCN:
		if l.phase == waitConnected && p.ConnID == m.rec.LocalID {
			m.connected(l)
			return
		}
	case *wire.StopCCN:
		m.retargeted(msg)
		m.setupRefused(l, msg.Result)
		return
	}
	err := fmt.Errorf("%v during set-up", p.Message.Type())
	m.abandon(l, &wire.Result{Code: wire.StopFSMError, Text: err.Error()}, err)
}

// setupRefused takes a StopCCN that answers a set-up. What becomes of the
// connection is for the cause to say.
func (m *Machine) setupRefused(l *link, res wire.Result) {
	if res.Cause == wire.CauseUnknownResume && m.startOver(l, res) {
		return
	}
	if !m.resuming() || m.cfg.Role == Initiator && res.Cause.Advice() != wire.RetryLater {
		m.tell(&wire.StopCCN{AssignedID: m.rec.LocalID, Result: res}) // where the old transport lives
		m.over(res, true, nil, session.ID{})
		return
	}
	m.abandon(l, nil, fmt.Errorf("refused: %s", res.Describe(wire.TypeStopCCN)))
}

// abandon gives up a set-up, telling the peer why if res is set. A connection
// that had no other transport yet is over; one to be resumed stays as it was.
func (m *Machine) abandon(l *link, res *wire.Result, err error) {
	if res != nil && (l.request != nil || l.phase == waitReply) {
		m.do(Send{l.id, m.setupPacket(l, &wire.StopCCN{AssignedID: m.rec.LocalID, Result: *res})})
	}
	if !m.resuming() {
		r := wire.Result{Code: wire.StopGeneral}
		if res != nil {
			r = *res
		}
		m.over(r, false, err, session.ID{})
		return
	}
	m.next = nil
	m.do(Drop{l.id, err}, Disarm{TimerSetup}, AttemptFailed{err})
}

// sccrq takes the request of a peer: for a new connection, or to resume this one.
func (m *Machine) sccrq(l *link, q *wire.SCCRQ) {
	l.request, l.shareIn, l.peer = q, q.Profile.KeyShare, q.Profile
	if q.Profile.Version != wire.ProtocolVersion {
		m.abandon(l, &wire.Result{Code: wire.StopVersion, Error: wire.ErrorCode(wire.ProtocolVersion), Cause: wire.CauseVersion},
			fmt.Errorf("protocol version %d", q.Profile.Version))
		return
	}
	if (q.Recovery != nil) != m.resuming() {
		m.abandon(l, &wire.Result{Code: wire.StopError, Error: wire.ErrorNoConnection, Cause: wire.CauseUnknownResume},
			fmt.Errorf("%v in state %v", q.Type(), m.state))
		return
	}
	if q.Recovery != nil {
		if cause, err := m.checkResume(l, q); err != nil {
			if cause == wire.CauseClonedState {
				m.do(Cloned{})
			}
			m.abandon(l, &wire.Result{Code: wire.StopError, Error: wire.ErrorNoConnection, Cause: cause}, err)
			return
		}
	}
	l.phase = waitAnswer
	m.ask(AskAuthorize{l.id, l.b, q.Recovery != nil})
}

// checkResume verifies the proof of a resume. Unknown ids and another node's ids
// get the same answer; an attempt number that was used before tells of a copy.
func (m *Machine) checkResume(l *link, q *wire.SCCRQ) (wire.Cause, error) {
	if q.Proof == nil || q.Cursor == nil {
		return wire.CauseResumeProof, errors.New("resume without proof or cursor")
	}
	if q.Recovery.LocalID != m.rec.RemoteID || q.Recovery.RemoteID != m.rec.LocalID || q.AssignedID != m.rec.RemoteID || l.b.PeerID != m.rec.PeerID {
		return wire.CauseUnknownResume, errors.New("resume of another connection")
	}
	key := m.rec.ResumeKey
	switch {
	case q.Proof.Generation == m.rec.Generation:
	case q.Proof.Generation == m.rec.Generation+1 && !m.rec.NextKey.IsZero():
		key, l.promoteTo = m.rec.NextKey, true
	case q.Proof.Generation < m.rec.Generation:
		return wire.CauseClonedState, fmt.Errorf("resume key of generation %d is spent, have %d", q.Proof.Generation, m.rec.Generation)
	default:
		return wire.CauseResumeProof, fmt.Errorf("resume key of generation %d, have %d", q.Proof.Generation, m.rec.Generation)
	}
	want := resumeMAC(key, Initiator, l.b, l.binding, false, *q.Recovery, q.RecoveryBootID, *q.Proof, *q.Cursor)
	if !macEqual(want, q.Proof.MAC) {
		return wire.CauseResumeProof, errors.New("resume proof does not hold")
	}
	if q.Proof.Attempt <= m.rec.Attempt {
		return wire.CauseClonedState, fmt.Errorf("resume attempt %d after %d", q.Proof.Attempt, m.rec.Attempt)
	}
	if !m.cursorFits(l, *q.Cursor) {
		return wire.CauseResumeProof, fmt.Errorf("resume from cursor %d/%d, have %d/%d", q.Cursor.Ns, q.Cursor.Nr, m.rec.Ns, m.rec.Nr)
	}
	return wire.CauseNone, nil
}

// cursorFits reports whether a peer that has got so far can go on with us: it
// expects nothing we have not sent nor what we have forgotten, and sends next
// nothing that we have already. The last two may seem so where another
// transport lived when the set-up of l began: both ends may have gone on over it
// since c was written.
func (m *Machine) cursorFits(l *link, c wire.Cursor) bool {
	oldest := m.rec.Ns - uint16(len(m.rec.Unacked))
	possible := int16(m.rec.Ns-c.Nr) >= 0
	behind := int16(c.Nr-oldest) < 0 || int16(c.Ns-m.rec.Nr) < 0
	return possible && (l.beside || !behind)
}

// authorized goes on with the set-up after the manager's decision.
func (m *Machine) authorized(ev Authorized) {
	l := m.next
	if l == nil || l.id != ev.Transport || l.phase != waitAnswer {
		return
	}
	if ev.Refusal != nil {
		m.abandon(l, ev.Refusal, fmt.Errorf("refused: %s", ev.Refusal.Describe(wire.TypeStopCCN)))
		return
	}
	r := &wire.SCCRP{
		HostName: m.cfg.HostName, RouterID: m.cfg.RouterID, AssignedID: m.rec.LocalID,
		Pseudowires: []uint16{wire.PWTypeWireGuard}, Profile: m.profile(l), Failover: m.failover(),
	}
	if m.cfg.Spread != nil {
		r.Spread = m.cfg.Spread()
	}
	if q := l.request; q.Recovery != nil {
		m.offerResume(l, q, r)
	} else {
		m.state = session.WaitCtlConn
		m.rec.RemoteID = q.AssignedID
	}
	l.phase = waitConnected
	m.do(Send{l.id, m.setupPacket(l, r)})
}

// offerResume answers a proof with our own, and keeps the resume key that
// follows beside the present one until the node is seen to have it.
func (m *Machine) offerResume(l *link, q *wire.SCCRQ, r *wire.SCCRP) {
	m.rec.Attempt = q.Proof.Attempt
	if l.promoteTo {
		m.rec.ResumeKey, m.rec.Generation = m.rec.NextKey, m.rec.Generation+1
	}
	m.rec.NextKey = ratchet(m.rec.ResumeKey, l.binding, m.rec.Generation+1)
	m.dirty = true
	if m.cfg.Keypairs != nil && q.RecoveryBootID != m.cfg.BootID { // to whom this process answered before knows it has them
		r.Kept = m.cfg.Keypairs()
	}
	r.Cursor = &wire.Cursor{Ns: m.rec.Ns, Nr: m.rec.Nr}
	r.Proof = &wire.Proof{Generation: m.rec.Generation, Attempt: q.Proof.Attempt}
	r.Proof.MAC = resumeMAC(m.rec.ResumeKey, Responder, l.b, l.binding, true,
		wire.Recovery{LocalID: m.rec.LocalID, RemoteID: m.rec.RemoteID}, m.cfg.BootID, *r.Proof, *r.Cursor)
}

// sccrp takes the gateway's answer and completes the set-up from this side.
func (m *Machine) sccrp(l *link, r *wire.SCCRP) {
	l.shareIn, l.peer = r.Profile.KeyShare, r.Profile
	l.spread, l.kept = r.Spread, r.Kept
	if r.Profile.Version != wire.ProtocolVersion {
		m.abandon(l, &wire.Result{Code: wire.StopVersion, Error: wire.ErrorCode(wire.ProtocolVersion), Cause: wire.CauseVersion},
			fmt.Errorf("protocol version %d", r.Profile.Version))
		return
	}
	if !m.resuming() || m.rec.Anew {
		m.rec.RemoteID = r.AssignedID
		m.begin(l, r.Failover)
		m.do(Send{l.id, m.setupPacket(l, &wire.SCCCN{})})
		m.rec.Ns, m.rec.Nr, m.rec.Anew = 2, 1, false
		m.rec.Serial, m.rec.Major = firstSerial, firstSerial
		m.promote(l)
		m.do(Opened{r.Profile.BootID})
		m.claimAll()
		return
	}
	if err := m.checkResumed(l, r); err != nil {
		m.abandon(l, &wire.Result{Code: wire.StopNotAuthorized, Cause: wire.CauseResumeProof}, err)
		return
	}
	if !m.cursorFits(l, *r.Cursor) { // one end has lost what it journalled: no attempt will ever do
		m.stop(wire.Result{Code: wire.StopError, Error: wire.ErrorNoConnection, Cause: wire.CauseResumeProof},
			fmt.Errorf("gateway goes on from %d/%d, have %d/%d", r.Cursor.Ns, r.Cursor.Nr, m.rec.Ns, m.rec.Nr))
		return
	}
	m.rec.ResumeKey = ratchet(m.rec.ResumeKey, l.binding, m.rec.Generation+1)
	m.rec.Generation++
	m.do(Send{l.id, m.setupPacket(l, &wire.SCCCN{})})
	m.resumed(l, r.Profile.BootID, *r.Cursor)
}

// checkResumed verifies the gateway's proof: only the end that knew the resume
// key may go on with the connection.
func (m *Machine) checkResumed(l *link, r *wire.SCCRP) error {
	if r.Proof == nil || r.Cursor == nil {
		return errors.New("gateway gave no proof or cursor")
	}
	if r.Proof.Generation != m.rec.Generation || r.Proof.Attempt != m.rec.Attempt || r.AssignedID != m.rec.RemoteID {
		return errors.New("gateway answered another attempt")
	}
	want := resumeMAC(m.rec.ResumeKey, Responder, l.b, l.binding, false,
		wire.Recovery{LocalID: m.rec.RemoteID, RemoteID: m.rec.LocalID}, r.Profile.BootID, *r.Proof, *r.Cursor)
	if !macEqual(want, r.Proof.MAC) {
		return errors.New("gateway's resume proof does not hold")
	}
	return nil
}

// connected takes SCCCN: the link carries the connection from here on.
func (m *Machine) connected(l *link) {
	q := l.request
	if q.Recovery != nil {
		// The node has journalled the next key before it sent SCCCN: the
		// present one is spent, and a copy of it worth nothing.
		m.rec.ResumeKey, m.rec.NextKey = m.rec.NextKey, secret.Value{}
		m.rec.Generation++
		m.resumed(l, q.Profile.BootID, *q.Cursor)
		return
	}
	m.begin(l, q.Failover)
	m.rec.Ns, m.rec.Nr = 1, 2
	m.rec.Serial, m.rec.Major = firstSerial, firstSerial
	m.promote(l)
	m.ackDue = true
	m.do(Opened{q.Profile.BootID})
}

// begin fixes what a connection keeps for life. Only one that both ends can
// recover outlives its transport (RFC 4951, section 3).
func (m *Machine) begin(l *link, f *wire.Failover) {
	m.rec.PeerID, m.rec.PeerName, m.rec.PeerBootID = l.b.PeerID, l.b.PeerName, l.peer.BootID
	m.rec.Unrecoverable = f == nil || !f.Control
	ids := [2]uint32{m.rec.LocalID, m.rec.RemoteID}
	if m.cfg.Role == Responder {
		ids[0], ids[1] = ids[1], ids[0]
	}
	context := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, ids[0]), ids[1])
	key, err := l.b.Export(labelResume, context, keySize)
	if err != nil {
		panic(err) // the same exporter answered for the binding
	}
	m.rec.ResumeKey = secret.New(key)
}

// promote makes l the transport of the connection, in the place of the old one.
func (m *Machine) promote(l *link) {
	if m.cur != nil {
		m.do(Drop{m.cur.id, errReplaced})
	}
	l.phase = up
	m.cur, m.next = l, nil
	m.peerCapabilities = l.peer.Capabilities
	m.state = session.Established
	m.restarted = false
	m.rec.SuspendedAt = time.Time{}
	m.dirty = true
	m.silent = 0
	m.do(Disarm{TimerSetup}, Disarm{TimerGrace}, Arm{TimerHello, m.helloDelay()})
	if l.spread != m.spread {
		m.spread = l.spread
		m.do(SpreadTold{l.spread})
	}
}

// resumed goes on with the connection on l, from where the peer has got to:
// messages it has not journalled are sent again, then both ends compare their
// sessions (RFC 4951, section 4).
func (m *Machine) resumed(l *link, peerBoot session.ID, c wire.Cursor) {
	restarted := peerBoot != m.rec.PeerBootID
	m.rec.PeerBootID = peerBoot
	m.rec.PeerName = l.b.PeerName
	if c.Ns == m.rec.Nr && c.Nr == m.rec.Ns {
		m.rec.Major = m.rec.Serial
	}
	m.acknowledged(c.Nr)
	m.promote(l)
	for _, s := range m.sessions {
		if !s.Rebuild {
			s.Resumes++
		}
	}
	for i, p := range m.rec.Unacked {
		again := *p
		again.Nr = m.rec.Nr
		m.rec.Unacked[i] = &again
		m.do(Send{l.id, &again})
	}
	m.do(Resumed{restarted, l.kept})
	m.queryFailover()
	m.ackDue = true
	m.ticketsDue(m.sessions...)
}

// queryFailover asks which of our sessions the peer still has.
func (m *Machine) queryFailover() {
	q := &wire.FSQ{Checkpoint: m.rec.Serial}
	for _, s := range m.sessions {
		if s.State == session.Established {
			q.Sessions = append(q.Sessions, wire.SessionPair{LocalID: s.LocalID, RemoteID: s.RemoteID})
		}
	}
	if len(q.Sessions) > 0 {
		m.tell(q)
	}
}

// fsq answers for each session asked for whether it is known here.
func (m *Machine) fsq(q *wire.FSQ) {
	if !m.compare(q.Checkpoint) {
		return
	}
	r := &wire.FSR{Checkpoint: m.rec.Serial}
	for _, p := range q.Sessions {
		pair := wire.SessionPair{LocalID: p.RemoteID}
		if s := m.byLocal(p.RemoteID); s != nil && s.RemoteID == p.LocalID && s.State == session.Established {
			pair.RemoteID = p.LocalID
		}
		r.Sessions = append(r.Sessions, pair)
	}
	m.tell(r)
}

// fsr removes, silently, each session the peer does not know.
func (m *Machine) fsr(r *wire.FSR) {
	if !m.compare(r.Checkpoint) {
		return
	}
	for _, p := range r.Sessions {
		if p.RemoteID != 0 {
			continue
		}
		if s := m.byRemote(p.LocalID); s != nil && s.State == session.Established {
			m.remove(s)
			m.dirty = true
			m.do(SessionDown{m.view(s), wire.Result{Code: wire.CDNCarrierLost, Cause: wire.CauseUnknownResume}, true, session.ID{}})
		}
	}
}

// readID returns a random id that free accepts.
func readID(r io.Reader, free func(uint32) bool) (uint32, error) {
	var b [4]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return 0, fmt.Errorf("random id: %w", err)
		}
		if id := binary.BigEndian.Uint32(b[:]); id != 0 && free(id) {
			return id, nil
		}
	}
}
