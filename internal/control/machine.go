package control

import (
	"crypto/ecdh"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// Role is the part a node plays in a control connection, for life: whoever
// dialled first is the initiator at every resume too.
type Role uint8

// The roles (L2TP's LAC and LNS). The values are part of what proofs cover.
const (
	Initiator Role = 1
	Responder Role = 2
)

// Defaults of Config.
const (
	defaultSetupTimeout = 10 * time.Second
	defaultMaxSessions  = 64
)

// maxUnacked bounds what is kept for a peer that acknowledges nothing. All
// sessions of a connection coming and going at once stay far below it.
const maxUnacked = 1024

// DefaultTimers are in force until a session brings its network's.
var DefaultTimers = wire.Timers{Hello: 20 * time.Second, Misses: 3, Grace: 24 * time.Hour}

// Config is what a Machine is made with.
type Config struct {
	Role         Role
	LocalID      uint32 // our name for the connection: not 0, unique at this node
	HostName     string
	RouterID     uint32
	BootID       session.ID
	Timers       wire.Timers    // zero: DefaultTimers
	SetupTimeout time.Duration  // of one transport; zero: 10 s
	ParkAfter    time.Duration  // of being at rest; longer than SetupTimeout; zero: never, see park.go
	MaxSessions  int            // zero: 64
	Tickets      bool           // a responder's: it gives them, see TicketHandler
	Rand         io.Reader      // keys and ids
	Jitter       func() float64 // in [0, 1); nil: math/rand
	// Spread is told to a responder's peer: over how long all of them should
	// come back that lose us at once. nil: 0.
	Spread func() time.Duration
	// Keypairs are the live keypairs of the connection's sessions, told by a
	// responder to a peer that knew another process of it. nil: none.
	Keypairs func() []wire.Keypair
}

// Machine is one control connection and the sessions in it.
//
//	idle ──transport/SCCRQ──► wait-ctl-reply ──SCCRP/SCCCN──► established   initiator
//	idle ──SCCRQ/SCCRP──────► wait-ctl-conn ──SCCCN─────────► established   responder
//	established ──transport lost──► suspended ──resume on a new one──► established
//	suspended ──end of the grace──► closed
//	any ──StopCCN, message in the wrong state──► closed
//
// A resume runs beside the transport in use and takes its place when it is
// complete, so that a new transport may be made before the old one breaks.
//
// A Machine is not safe for concurrent use. Every Ask… action must be answered
// by the very next event.
type Machine struct {
	cfg   Config
	state session.State

	cur  *link // carries the connection
	next *link // is being set up

	rec      Record // Sessions and Unacked apart, what Save writes
	sessions []*Session
	exchange *exchange         // of the open AskArm
	changing *wire.ChangeOffer // of the open AskChange, AskExtend or AskRefresh

	peerCapabilities uint32

	unsent    uint16        // while suspended: messages from this Ns on were never sent
	silent    int           // hello intervals without a word from the peer
	restarted bool          // this machine was restored and not yet resumed
	spread    time.Duration // as an initiator's peer told it last

	// Of the present step.
	out    []Action
	last   []Action // of the step before
	dirty  bool     // the record differs from the saved one
	ackDue bool     // the peer waits for our Nr
	asked  bool     // an Ask… action is open: nothing is saved or sent before its answer
	due    []uint32 // sessions that are to get a ticket
	held   []Action // what waits for the answer to AskTicket
}

// link is one transport as the machine sees it.
type link struct {
	id        TransportID
	b         Binding
	binding   []byte // the exporter value that proofs cover
	share     secret.Value
	shareOut  [32]byte
	shareIn   [32]byte
	spread    time.Duration  // an initiator's: as its peer told it
	kept      []wire.Keypair // likewise
	peer      wire.Profile   // what the peer says of itself
	phase     phase
	request   *wire.SCCRQ // a responder's: what it answers
	promoteTo bool        // the proof was made with NextKey
	beside    bool        // another transport carried the connection when this one was taken
	heard     bool        // the peer has used it since its set-up
}

// phase is how far a link has been set up.
type phase uint8

const (
	waitRequest   phase = iota // responder: for SCCRQ
	waitAnswer                 // responder: for Authorized
	waitReply                  // initiator: for SCCRP
	waitConnected              // responder: for SCCCN
	up
)

// New returns a machine for a control connection that does not exist yet.
func New(cfg Config) *Machine {
	return &Machine{cfg: cfg.withDefaults(), rec: Record{Role: cfg.Role, LocalID: cfg.LocalID, Timers: cfg.withDefaults().Timers}}
}

// Restore returns a suspended machine that goes on where rec ends. Its first
// event must be Started. cfg.Role and cfg.LocalID are taken from rec.
func Restore(cfg Config, rec *Record) *Machine {
	cfg = cfg.withDefaults()
	cfg.Role, cfg.LocalID = rec.Role, rec.LocalID
	m := &Machine{cfg: cfg, rec: *rec, state: session.Suspended, unsent: rec.Ns, restarted: true}
	m.rec.Sessions = nil
	for _, s := range rec.Sessions {
		if s.State != session.WaitReply || s.Rebuild { // its key proof is of a transport that is gone: begins anew, as after lose
			m.sessions = append(m.sessions, &s)
		}
	}
	return m
}

func (c Config) withDefaults() Config {
	if c.Timers == (wire.Timers{}) {
		c.Timers = DefaultTimers
	}
	if c.SetupTimeout == 0 {
		c.SetupTimeout = defaultSetupTimeout
	}
	if c.MaxSessions == 0 {
		c.MaxSessions = defaultMaxSessions
	}
	if c.Jitter == nil {
		c.Jitter = rand.Float64
	}
	return c
}

// State is the state of the control connection (RFC 3931, section 7.2).
func (m *Machine) State() session.State { return m.state }

// Sessions returns a copy of the sessions, in the order of their beginning. A
// session of a suspended connection is suspended.
func (m *Machine) Sessions() []Session {
	out := make([]Session, 0, len(m.sessions))
	for _, s := range m.sessions {
		out = append(out, m.view(s))
	}
	return out
}

// view is s as others see it.
func (m *Machine) view(s *Session) Session {
	v := *s
	if s.Rebuild || m.state == session.Suspended && v.State == session.Established {
		v.State = session.Suspended
	}
	return v
}

// InUse reports whether the peer has used the present transport, too, since it was
// set up: it has taken over from the one before at both ends.
func (m *Machine) InUse() bool { return m.cur != nil && m.cur.heard }

// Pending is the number of messages the peer is not known to have journalled.
func (m *Machine) Pending() int { return len(m.rec.Unacked) }

// Peer says who is at the other end: its node id, name and boot id as last seen.
func (m *Machine) Peer() (id session.ID, name string, boot session.ID) {
	return m.rec.PeerID, m.rec.PeerName, m.rec.PeerBootID
}

// IDs are the two names of the connection.
func (m *Machine) IDs() (local, remote uint32) { return m.rec.LocalID, m.rec.RemoteID }

// Timers are those in force: the smallest hello and misses of the sessions,
// the longest grace.
func (m *Machine) Timers() wire.Timers { return m.rec.Timers }

// Record returns a copy of everything that must outlive the process.
func (m *Machine) Record() *Record {
	r := m.rec
	r.Unacked = append([]*wire.Packet(nil), m.rec.Unacked...)
	r.Sessions = nil
	for _, s := range m.sessions {
		r.Sessions = append(r.Sessions, *s)
	}
	return &r
}

// Step advances the machine by one event and says what to do about it. It
// never blocks. After Closed every event is ignored.
func (m *Machine) Step(ev Event) []Action {
	m.last, m.out = m.out, nil
	if m.state == session.Closed {
		return m.refuseWhenClosed(ev)
	}
	m.dispatch(ev)
	if m.asked || m.askTickets() {
		return m.out
	}
	return m.finish()
}

func (m *Machine) dispatch(ev Event) {
	switch ev := ev.(type) {
	case Attached:
		m.attached(ev)
	case Received:
		m.received(ev)
	case Malformed:
		m.malformed(ev)
	case Detached:
		m.detached(ev)
	case SaveFailed:
		m.saveFailed(ev)
	case Expired:
		m.expired(ev)
	case Started:
		m.do(Arm{TimerGrace, ev.Remaining})
		if m.rec.SuspendedAt.IsZero() {
			m.rec.SuspendedAt, m.dirty = ev.At, true
		}
	case OpenSession:
		m.openSession(ev)
	case CloseSession:
		m.closeSession(ev)
	case Stop:
		m.stopOn(ev)
	case ReportTrouble:
		m.reportTrouble(ev)
	case RenewCertificate:
		m.renew(ev)
	case HoldSession:
		m.holdSession(ev)
	case ChangeLifetime:
		m.changeLifetime(ev)
	case TellStamp:
		m.tellStamp(ev)
	case StartRekey:
		m.startRekey(ev)
	case ConfirmRekey:
		m.confirmRekey(ev)
	case FailRekey:
		m.failRekey(ev)
	case OfferChange:
		m.offerChange(ev)
	case ExtendSession:
		m.extendSession(ev)
	case RefreshSession:
		m.refreshSession(ev)
	case RebuildSession:
		m.rebuildSession(ev)
	case TellDrain:
		m.tellDrain(ev)
	case Authorized, Granted, SetUp, Signed, Armed, Changed, Extended, Agreed, Ticketed:
		m.answered(ev)
	}
}

// answered takes the answer to the one open question.
func (m *Machine) answered(ev Event) {
	if !m.asked {
		return
	}
	m.asked = false
	switch ev := ev.(type) {
	case Authorized:
		m.authorized(ev)
	case Granted:
		m.granted(ev)
	case SetUp:
		m.setUp(ev)
	case Armed:
		m.armed(ev)
	case Changed:
		m.changed(ev)
	case Extended:
		m.extended(ev)
	case Agreed:
		m.agreed(ev)
	case Ticketed:
		m.ticketed(ev)
	case Signed:
		m.send(&wire.CertReply{RequestID: ev.RequestID, Certificate: ev.Certificate, Result: ev.Refusal})
	}
}

// do appends an action.
func (m *Machine) do(a ...Action) { m.out = append(m.out, a...) }

// ask appends a question; until its answer nothing is saved or acknowledged.
func (m *Machine) ask(a Action) {
	m.asked = true
	m.do(a)
}

// finish completes the actions of a step: what the peer is owed, and the Save
// before anything that tells of the new state.
func (m *Machine) finish() []Action {
	if m.ackDue && m.cur != nil && !m.speaks(m.cur.id) {
		m.do(Send{m.cur.id, m.packet(&wire.ACK{})})
	}
	m.ackDue = false
	if !m.dirty || m.state == session.Closed {
		return m.out
	}
	m.dirty = false
	at := len(m.out)
	for i, a := range m.out {
		if _, ok := a.(Send); ok {
			at = i
			break
		}
	}
	m.out = append(m.out, nil)
	copy(m.out[at+1:], m.out[at:])
	m.out[at] = Save{m.Record()}
	return m.out
}

// speaks reports whether this step sends something on transport id.
func (m *Machine) speaks(id TransportID) bool {
	for _, a := range m.out {
		if s, ok := a.(Send); ok && s.Transport == id {
			return true
		}
	}
	return false
}

// packet puts the header of the connection before msg, at its present numbers.
func (m *Machine) packet(msg wire.Message) *wire.Packet {
	return &wire.Packet{ConnID: m.rec.RemoteID, Ns: m.rec.Ns, Nr: m.rec.Nr, Message: msg}
}

// send sends a message that takes a number: it is kept, and sent again after a
// resume, until the peer has journalled it.
func (m *Machine) send(msg wire.Message) {
	if m.rec.Anew { // the peer knows nothing that this could be about
		m.dirty = true
		return
	}
	p := m.packet(msg)
	m.rec.Ns++
	m.count()
	m.rec.Unacked = append(m.rec.Unacked, p)
	m.dirty = true
	if m.cur != nil {
		m.do(Send{m.cur.id, p})
	}
}

// tell sends a message that takes no number: it says nothing that must
// outlive the transport.
func (m *Machine) tell(msg wire.Message) {
	if m.cur != nil {
		m.do(Send{m.cur.id, m.packet(msg)})
	}
}

// numbered reports whether messages of type t take a number and so are replayed.
// HELLO, WEN, FSQ, FSR and DRN speak of the moment only; RFC 3931 numbers HELLO too,
// but ours would then cost a write to disk at each end (docs/protocol.md).
func numbered(t wire.MessageType) bool {
	switch t {
	case wire.TypeHello, wire.TypeACK, wire.TypeWEN, wire.TypeFSQ, wire.TypeFSR, wire.TypeDrain:
		return false
	}
	return true
}

// link returns the link of a transport, nil if it was given up.
func (m *Machine) link(id TransportID) *link {
	switch {
	case m.cur != nil && m.cur.id == id:
		return m.cur
	case m.next != nil && m.next.id == id:
		return m.next
	}
	return nil
}

// received sorts a message by the transport it came on.
func (m *Machine) received(ev Received) {
	switch l := m.link(ev.Transport); {
	case l == nil: // late: from a transport that was given up
	case l == m.next:
		m.setupMessage(l, ev.Packet)
	default:
		m.currentMessage(ev.Packet)
	}
}

// currentMessage takes a message of the transport in use: numbers first.
func (m *Machine) currentMessage(p *wire.Packet) {
	m.cur.heard = true
	m.heard()
	if p.ConnID != m.rec.LocalID || !m.acknowledged(p.Nr) {
		m.wrong(p, "header of another connection")
		return
	}
	if numbered(p.Message.Type()) {
		switch d := int16(p.Ns - m.rec.Nr); {
		case d < 0: // a repetition of what is journalled
			m.ackDue = true
			return
		case d > 0:
			m.lose(fmt.Errorf("message %d received where %d was due", p.Ns, m.rec.Nr))
			return
		}
		m.rec.Nr++
		m.count()
		m.dirty, m.ackDue = true, true
		if n := len(m.rec.Unacked); n >= maxUnacked {
			err := fmt.Errorf("%d messages were not acknowledged", n)
			m.stop(wire.Result{Code: wire.StopError, Error: wire.ErrorResources, Text: err.Error()}, err)
			return
		}
	}
	m.message(p)
}

// message acts on a message of an established connection (RFC 3931, section 7).
func (m *Machine) message(p *wire.Packet) {
	switch msg := p.Message.(type) {
	case *wire.StopCCN:
		m.stopped(msg)
	case *wire.Hello:
		m.ackDue = true
	case *wire.ACK, *wire.UnknownMessage: // the latter may be ignored, says its M bit
	case *wire.ICRQ:
		m.icrq(msg)
	case *wire.ICRP:
		m.icrp(msg)
	case *wire.ICCN:
		m.iccn(msg)
	case *wire.CDN:
		m.cdn(msg)
	case *wire.SLI:
		m.sli(msg)
	case *wire.WEN:
		m.wen(msg)
	case *wire.FSQ:
		m.fsq(msg)
	case *wire.FSR:
		m.fsr(msg)
	case *wire.CertRequest:
		m.certRequest(p, msg)
	case *wire.CertReply:
		m.certReply(p, msg)
	case *wire.KeyRequest:
		m.keyRequest(msg)
	case *wire.KeyReply:
		m.keyReply(msg)
	case *wire.KeyChanged:
		m.keyChanged(msg)
	case *wire.ChangeOffer:
		m.changeOffer(msg)
	case *wire.ChangeAnswer:
		m.changeAnswer(msg)
	case *wire.Ticket:
		m.ticket(p, msg)
	case *wire.Drain:
		m.drain(p, msg)
	default: // SCCRQ, SCCRP, SCCCN: RFC 3931, section 7.2
		m.wrong(p, "connection is established")
	}
}

// heard restarts the silence timer: any traffic counts.
func (m *Machine) heard() {
	m.silent = 0
	m.do(Arm{TimerHello, m.helloDelay()})
}

// helloDelay is the hello interval less up to a quarter, so that the
// connections of one gateway do not speak in chorus.
func (m *Machine) helloDelay() time.Duration {
	h := m.rec.Timers.Hello
	return h - time.Duration(m.cfg.Jitter()*float64(h)/4)
}

// acknowledged forgets what the peer has journalled: everything before nr. An
// nr beyond what was sent is false.
func (m *Machine) acknowledged(nr uint16) bool {
	if int16(m.rec.Ns-nr) < 0 {
		return false
	}
	for len(m.rec.Unacked) > 0 && int16(nr-m.rec.Unacked[0].Ns) > 0 {
		m.rec.Unacked = m.rec.Unacked[1:]
	}
	return true
}

func (m *Machine) malformed(ev Malformed) {
	switch l := m.link(ev.Transport); {
	case l == nil:
	case l == m.next:
		m.abandon(l, &ev.Result, fmt.Errorf("malformed message: %s", ev.Result.Text))
	default:
		m.stop(ev.Result, fmt.Errorf("malformed message: %s", ev.Result.Text))
	}
}

// wrong ends the connection because of a message that has no place in its
// state (RFC 3931, section 7.1).
func (m *Machine) wrong(p *wire.Packet, why string) {
	err := fmt.Errorf("%v in state %v: %s", p.Message.Type(), m.state, why)
	m.stop(wire.Result{Code: wire.StopFSMError, Text: err.Error()}, err)
}

// expired acts on a timer.
func (m *Machine) expired(ev Expired) {
	switch ev.Timer {
	case TimerSetup:
		if m.next != nil {
			m.abandon(m.next, nil, fmt.Errorf("no answer within %v", m.cfg.SetupTimeout))
		}
	case TimerHello:
		m.silence(ev.At)
	case TimerTicket:
		if m.cur != nil {
			m.ticketsDue(m.sessions...)
		}
	case TimerGrace:
		if m.state == session.Suspended {
			m.over(wire.Result{Code: wire.StopGeneral, Cause: wire.CauseGraceOver}, false, nil, session.ID{})
		}
	}
}

// silence counts a hello interval in which the peer said nothing.
func (m *Machine) silence(at time.Time) {
	if m.cur == nil {
		return
	}
	m.silent++
	if m.silent >= int(m.rec.Timers.Misses) {
		m.rec.SuspendedAt = at
		m.lose(ErrPeerSilent)
		return
	}
	m.tell(&wire.Hello{})
	m.do(Arm{TimerHello, m.helloDelay()})
}

// detached takes a lost transport away.
func (m *Machine) detached(ev Detached) {
	switch l := m.link(ev.Transport); {
	case l == nil:
		if m.state == session.Suspended && m.rec.SuspendedAt.IsZero() { // of a transport we gave up: about now
			m.rec.SuspendedAt, m.dirty = ev.At, true
		}
	case l == m.next:
		m.abandon(l, nil, ev.Err)
	default:
		m.rec.SuspendedAt = ev.At
		m.lose(ev.Err)
	}
}

// newLink prepares the exchange on a fresh transport.
func (m *Machine) newLink(ev Attached) (*link, error) {
	l := &link{id: ev.Transport, b: ev.Binding, beside: ev.Beside || m.cur != nil}
	var err error
	if l.binding, err = ev.Binding.Export(labelBinding, nil, keySize); err != nil {
		return nil, fmt.Errorf("exporter: %w", err)
	}
	raw := make([]byte, keySize)
	if _, err := io.ReadFull(m.cfg.Rand, raw); err != nil {
		return nil, fmt.Errorf("key share: %w", err)
	}
	priv, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("key share: %w", err)
	}
	l.share, l.shareOut = secret.OfX25519(priv), [32]byte(priv.PublicKey().Bytes())
	return l, nil
}
