package control

import (
	"net/netip"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// TransportID names one transport of a control connection within its Machine.
type TransportID uint64

// Binding is what ties an exchange to one transport and to the nodes at its
// two ends, as their certificates name them.
type Binding struct {
	// Since is when this end took the transport: what the peer says on it was
	// written later.
	Since time.Time
	// Export derives octets that only the two ends of this transport know
	// (RFC 8446, section 7.5).
	Export func(label string, context []byte, n int) ([]byte, error)

	OwnID, PeerID   session.ID // node ids
	PeerName        string
	OwnKey, PeerKey [32]byte // SHA-256 of each certificate's public key
}

// An Event is what happens to a Machine.
type Event interface{ event() }

// Attached gives the machine a transport. An initiator starts to speak on it; a
// responder waits for the SCCRQ, which must be the first thing received.
type Attached struct {
	Transport TransportID
	Binding   Binding
	// Beside says of one that a peer dialled that the connection may have had
	// another when this one was taken: both ends may have gone on over that
	// since the first word on this was written.
	Beside bool
}

// Received is one message from a transport.
type Received struct {
	Transport TransportID
	Packet    *wire.Packet
}

// Malformed is a message that could not be understood; Result is what RFC 3931
// wants said about it.
type Malformed struct {
	Transport TransportID
	Result    wire.Result
}

// Detached says that a transport is gone. At is the wall clock.
type Detached struct {
	Transport TransportID
	At        time.Time
	Err       error
}

// SaveFailed says that the record of the last Save is not durable; nothing that
// followed the Save was done. It must be the very next event. An Err that wraps a
// [Denied] ends the connection, any other suspends it.
type SaveFailed struct{ Err error }

// Denied is an error of Handler.Save that says why the peer gets nothing more.
type Denied struct {
	Result wire.Result // of the StopCCN
	Err    error
}

func (d *Denied) Error() string { return d.Err.Error() }

// Unwrap returns the cause.
func (d *Denied) Unwrap() error { return d.Err }

// Expired is a timer that was armed and ran out.
type Expired struct {
	Timer Timer
	At    time.Time // wall clock
}

// Started is the first event of a restored machine: Remaining is what is left
// of the grace, At the wall clock. A connection whose last process was killed
// counts as suspended from then on, however often it is restarted.
type Started struct {
	Remaining time.Duration
	At        time.Time
}

// OpenSession asks an established initiator for a session.
type OpenSession struct {
	Network    string
	Label      string // ours, kept with the session: which tunnel it is for
	Serial     uint32
	PrivateKey secret.Value // X25519, made for this session
	PublicKey  [32]byte
	Advertise  []netip.Prefix
	Expires    wire.Expires // wished
	RequestID  session.ID   // of the wish behind it; zero: the machine makes one
}

// CloseSession ends the session of this local id, for good.
type CloseSession struct {
	LocalID    uint32
	Result     wire.Result
	Statistics *wire.Statistics
	RequestID  session.ID // as in OpenSession
	IfSerial   uint64     // only if the session has so many Changes; 0: whatever it has
}

// Stop ends the control connection and every session in it, for good.
type Stop struct {
	Result    wire.Result
	RequestID session.ID // as in OpenSession
}

// ReportTrouble tells the peer that a session's data path is silent.
type ReportTrouble struct {
	LocalID    uint32
	Errors     wire.CircuitErrors
	Statistics *wire.Statistics
}

// RenewCertificate asks the peer to sign a new certificate for us.
type RenewCertificate struct {
	RequestID session.ID
	CSR       []byte
}

// Answers to what the machine asked by an Ask… action. Refusal nil means yes.
type (
	// Authorized answers AskAuthorize.
	Authorized struct {
		Transport TransportID
		Refusal   *wire.Result
	}
	// Granted answers AskSession.
	Granted struct {
		LocalID uint32
		Grant   Grant
		Refusal *wire.Result
	}
	// SetUp answers AskSetUp.
	SetUp struct {
		LocalID uint32
		Refusal *wire.Result
	}
	// Signed answers AskSign.
	Signed struct {
		RequestID   session.ID
		Certificate []byte
		Refusal     *wire.Result
	}
)

func (Attached) event()         {}
func (Received) event()         {}
func (Malformed) event()        {}
func (Detached) event()         {}
func (SaveFailed) event()       {}
func (Expired) event()          {}
func (Started) event()          {}
func (OpenSession) event()      {}
func (CloseSession) event()     {}
func (Stop) event()             {}
func (ReportTrouble) event()    {}
func (RenewCertificate) event() {}
func (Authorized) event()       {}
func (Granted) event()          {}
func (SetUp) event()            {}
func (Signed) event()           {}

// Grant is what a gateway gives a session.
type Grant struct {
	ID         session.ID
	PrivateKey secret.Value // X25519, of the network
	PublicKey  [32]byte
	Addresses  []netip.Addr   // for the node
	Peers      []netip.Addr   // the gateway's own
	Routes     []netip.Prefix // for the node to send here
	MTU        uint16
	Timers     wire.Timers
	Lifetime   wire.Lifetime
	Expires    wire.Expires // agreed; zero: none
	Began      time.Time    // wall clock

	// Of a session that is rebuilt: see ticket.go.
	KeyEpoch uint32
	Resumes  uint64
	Extended time.Duration
}

// Timer names a timer of the machine. Arming one that runs starts it anew.
type Timer uint8

// The timers.
const (
	TimerSetup  Timer = iota // of the transport being set up
	TimerHello               // silence on the current transport
	TimerGrace               // suspension
	TimerTicket              // age of the sessions' tickets
	numTimers
)

// String names the timer for logs.
func (t Timer) String() string { return [...]string{"setup", "hello", "grace", "ticket"}[t] }

// An Action is what a Machine wants done. Actions are done in their order.
type Action interface{ action() }

// Send sends a message on a transport.
type Send struct {
	Transport TransportID
	Packet    *wire.Packet
}

// Save makes the record durable. What follows it must not happen unless it
// succeeded; a failed Save takes the machine's transports away.
type Save struct{ Record *Record }

// Forget removes the record: the connection is over.
type Forget struct{}

// Arm starts a timer, Disarm stops it.
type (
	Arm struct {
		Timer Timer
		After time.Duration
	}
	Disarm struct{ Timer Timer }
)

// Drop closes a transport after what was sent on it has left.
type Drop struct {
	Transport TransportID
	Err       error // for the log; nil: as it should be
}

// AskAuthorize asks whether the peer may have this control connection, for a
// new one (Resume false) or at a resume.
type AskAuthorize struct {
	Transport TransportID
	Binding   Binding
	Resume    bool
}

// AskSession asks a gateway to decide about a new session.
type AskSession struct {
	LocalID uint32
	Request *wire.ICRQ
}

// AskSetUp asks to prepare data plane and host for a session: at a gateway
// with its gate closed until SessionUp, at a node open.
type AskSetUp struct{ Session Session }

// AskSign asks a gateway to sign a renewed certificate for its peer.
type AskSign struct {
	RequestID session.ID
	CSR       []byte
}

// Notices: what happened, for the manager to act upon and to record.
type (
	// Opened: the control connection is established.
	Opened struct{ PeerBootID session.ID }
	// Resumed: a new transport carries the connection; PeerRestarted says
	// that the peer's daemon is another process than before, and Kept which
	// live keypairs it still has.
	Resumed struct {
		PeerRestarted bool
		Kept          []wire.Keypair
	}
	// SpreadTold: over how long nodes should come back that lose the gateway
	// all at once.
	SpreadTold struct{ Spread time.Duration }
	// AttemptFailed: a transport did not come to resume the connection, which
	// stays as it was; another try may succeed.
	AttemptFailed struct{ Err error }
	// WasSuspended: the transport is lost, everything else is kept.
	WasSuspended struct{ Err error }
	// SessionUp: packets may flow.
	SessionUp struct{ Session Session }
	// SessionDown: the session is over. Remote says that the peer ended it.
	SessionDown struct {
		Session   Session
		Result    wire.Result
		Remote    bool
		RequestID session.ID // of the wish that ended it; zero: none did
	}
	// SessionRefused: a session asked for by OpenSession does not come.
	SessionRefused struct {
		Network   string
		Label     string
		Result    wire.Result
		Remote    bool
		RequestID session.ID // of the OpenSession
	}
	// TroubleReported: the peer says that its data path is silent.
	TroubleReported struct {
		Session Session
		Errors  wire.CircuitErrors
	}
	// CertificateRenewed: the answer to RenewCertificate.
	CertificateRenewed struct {
		RequestID   session.ID
		Certificate []byte
		Result      *wire.Result
	}
	// Cloned: a resume was tried with a proof that was used before, so there
	// may be two copies of the node's state.
	Cloned struct{}
	// Ended: the control connection is over, for good.
	Ended struct {
		Result    wire.Result
		Remote    bool
		Err       error
		RequestID session.ID // of the wish that ended it; zero: none did
	}
)

func (Send) action()               {}
func (Save) action()               {}
func (Forget) action()             {}
func (Arm) action()                {}
func (Disarm) action()             {}
func (Drop) action()               {}
func (AskAuthorize) action()       {}
func (AskSession) action()         {}
func (AskSetUp) action()           {}
func (AskSign) action()            {}
func (Opened) action()             {}
func (Resumed) action()            {}
func (SpreadTold) action()         {}
func (AttemptFailed) action()      {}
func (WasSuspended) action()       {}
func (SessionUp) action()          {}
func (SessionDown) action()        {}
func (SessionRefused) action()     {}
func (TroubleReported) action()    {}
func (CertificateRenewed) action() {}
func (Cloned) action()             {}
func (Ended) action()              {}
