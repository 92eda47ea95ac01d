package wire

import (
	"net/netip"
	"time"

	"tunneld/internal/session"
)

// A Packet is one control message with its header (RFC 3931, section 3.2.1).
type Packet struct {
	ConnID  uint32 // the receiver's; 0 until it is known
	Ns, Nr  uint16
	Message Message
}

// Message is one of the message types of this package, as a pointer.
type Message interface{ Type() MessageType }

// Result is a Result Code AVP (RFC 3931, section 5.4.2) with our vendor Cause
// AVP beside it, which says more where the RFC's codes end.
type Result struct {
	Code  ResultCode
	Error ErrorCode
	Cause Cause
	Text  string        // for people: at most 255 octets of UTF-8, never acted upon
	Floor time.Duration `json:",omitzero"` // of a lifetime that is refused as too short, in CDN and CHA: the least; whole seconds on the wire
}

// Profile is what a node says of its protocol: SCCRQ and SCCRP.
type Profile struct {
	Version      uint16     // of docs/protocol.md; ours is ProtocolVersion
	Capabilities uint32     // bits; unknown ones are ignored
	BootID       session.ID // new at each start of the daemon
	// KeyShare is an X25519 public key made for this transport, against which
	// the peer proves possession of session keys.
	KeyShare [32]byte
}

// Failover is the Failover Capability AVP (RFC 4951, section 5.1).
type Failover struct {
	Control, Data bool          // what of this end survives a failure
	RecoveryTime  time.Duration // how long state is kept; milliseconds on the wire
}

// Recovery is the Tunnel Recovery AVP (RFC 4951, section 5.2) as its sender sees
// the ids of the connection to recover.
type Recovery struct{ LocalID, RemoteID uint32 }

// Proof is what a resume is believed by: docs/protocol.md, "Resume".
type Proof struct {
	Generation uint64 // of the resume key
	Attempt    uint64 // journalled before it is sent; only a higher one takes over
	MAC        [32]byte
}

// Cursor says how far a side has got: the Ns it will give to its next new
// message, and the Ns it expects next (all before are journalled).
type Cursor struct{ Ns, Nr uint16 }

// SCCRQ starts a control connection, or with Recovery resumes one.
type SCCRQ struct {
	HostName       string
	RouterID       uint32
	AssignedID     uint32 // the sender's name for the connection
	Pseudowires    []uint16
	ReceiveWindow  uint16 // 0: absent, meaning 4
	TieBreaker     uint64 // 0: absent
	VendorName     string
	Profile        Profile
	Failover       *Failover
	Recovery       *Recovery
	Proof          *Proof
	Cursor         *Cursor
	RecoveryBootID session.ID // with Recovery: the peer's boot id as last seen
}

// SCCRP answers an SCCRQ.
type SCCRP struct {
	HostName      string
	RouterID      uint32
	AssignedID    uint32
	Pseudowires   []uint16
	ReceiveWindow uint16
	VendorName    string
	Profile       Profile
	Failover      *Failover
	Proof         *Proof
	Cursor        *Cursor
	Spread        time.Duration // over how long nodes should come back that lose the gateway all at once; milliseconds on the wire
	Kept          []Keypair     `json:",omitempty"` // in a resume, by a gateway that is another process than its node knew
}

// SCCCN completes the set-up.
type SCCCN struct{}

// StopCCN ends a control connection and every session in it.
type StopCCN struct {
	AssignedID uint32 // 0: absent
	Result     Result
	RequestID  session.ID `json:",omitzero"`  // the wish behind it: docs/protocol.md, "Requests"
	Gateways   []string   `json:",omitempty"` // HOST:PORT, to be tried instead; only with ErrorTryNamed
}

// Hello asks the peer's control path for a sign of life.
type Hello struct{}

// ACK acknowledges without saying anything; it takes no Ns.
type ACK struct{}

// ICRQ asks for a session.
type ICRQ struct {
	LocalID, RemoteID uint32 // RemoteID is 0 here
	Serial            uint32
	PWType            uint16
	RemoteEnd         string // the network's name
	TieBreaker        uint64 // 0: absent
	CircuitStatus     CircuitStatus
	PublicKey         [32]byte // WireGuard, made for this session
	KeyProof          [32]byte
	Advertise         []netip.Prefix
	RequestID         session.ID `json:",omitzero"`  // the wish behind it: docs/protocol.md, "Requests"
	Ticket            []byte     `json:",omitempty"` // of a session that is to be rebuilt; else empty
	KeyEpoch          uint32     `json:",omitempty"` // with Ticket: the one that begins
	Expires           *Expires   `json:",omitempty"` // wished; nil: the sender knows of none
}

// ICRP grants a session.
type ICRP struct {
	LocalID, RemoteID uint32
	CircuitStatus     CircuitStatus
	Session           session.ID
	PublicKey         [32]byte // of the gateway's network
	KeyProof          [32]byte
	KeyEpoch          uint32
	Addresses         []netip.Addr   // given to the node
	Peers             []netip.Addr   // the gateway's own in the network
	Routes            []netip.Prefix // to be sent through the tunnel, pools included
	MTU               uint16
	Timers            Timers
	Lifetime          Lifetime
	RequestID         session.ID `json:",omitzero"`  // the wish behind it: docs/protocol.md, "Requests"
	Expires           *Expires   `json:",omitempty"` // agreed; nil: none
}

// Timers are what a network asks of its sessions.
type Timers struct {
	Hello  time.Duration // milliseconds on the wire
	Misses uint16
	Grace  time.Duration // milliseconds on the wire
}

// ICCN completes a session.
type ICCN struct {
	LocalID, RemoteID uint32
	CircuitStatus     CircuitStatus
}

// CDN ends a session.
type CDN struct {
	LocalID, RemoteID uint32 // LocalID 0: none was assigned
	Result            Result
	Statistics        *Statistics
	RequestID         session.ID `json:",omitzero"` // the wish behind it: docs/protocol.md, "Requests"
}

// SLI tells of a change in a live session.
type SLI struct {
	LocalID, RemoteID uint32
	CircuitStatus     *CircuitStatus
	// HasRoutes says that Routes, also when empty, replaces the routes of the session.
	HasRoutes bool
	Routes    []netip.Prefix
	Lifetime  *Lifetime  // in the place of the one before; nil: no change
	Stamp     Stamp      `json:",omitzero"` // of the last handshake that the sender accepted
	RequestID session.ID `json:",omitzero"` // the wish behind it: docs/protocol.md, "Requests"
}

// WEN tells of trouble on the data path, at most once in 60 s.
type WEN struct {
	LocalID, RemoteID uint32
	CircuitErrors     CircuitErrors
	Statistics        *Statistics
}

// FSQ asks which of these sessions the peer has (RFC 4951, section 4.1).
type FSQ struct {
	Sessions   []SessionPair
	Checkpoint uint64 `json:",omitzero"` // serial the sender stands at; 0: absent
}

// FSR answers FSQ; a pair with RemoteID 0 is not known at its sender.
type FSR struct {
	Sessions   []SessionPair
	Checkpoint uint64 `json:",omitzero"` // serial the sender stands at; 0: absent
}

// SessionPair is a Failover Session State AVP, as its sender sees the ids.
type SessionPair struct{ LocalID, RemoteID uint32 }

// CertRequest asks the gateway to renew the sender's certificate.
type CertRequest struct {
	RequestID session.ID
	CSR       []byte // PKCS #10, DER
}

// CertReply answers a CertRequest with that RequestID.
type CertReply struct {
	RequestID   session.ID
	Certificate []byte  // DER; empty when Result says why not
	Result      *Result // nil: granted
}

// Statistics are a session's inner counters as their sender sees them.
type Statistics struct {
	RxPackets, TxPackets, RxBytes, TxBytes uint64
}

// CircuitStatus is the Circuit Status AVP (RFC 3931, section 5.4.5).
type CircuitStatus struct{ Active, New bool }

// CircuitErrors is the Circuit Errors AVP (RFC 3931, section 5.4.5).
type CircuitErrors struct {
	HardwareOverruns, BufferOverruns, Timeouts, Alignment uint32
}
