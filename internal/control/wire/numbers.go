// Package wire spells RFC 3931 control messages and their AVPs as bytes. It
// has no state and trusts nothing: whatever it parses comes from a peer.
package wire

// MessageType is the value of the Message Type AVP (RFC 3931, section 6).
type MessageType uint16

// The standard messages, and FSQ and FSR of RFC 4951.
const (
	TypeSCCRQ   MessageType = 1
	TypeSCCRP   MessageType = 2
	TypeSCCCN   MessageType = 3
	TypeStopCCN MessageType = 4
	TypeHello   MessageType = 6
	TypeICRQ    MessageType = 10
	TypeICRP    MessageType = 11
	TypeICCN    MessageType = 12
	TypeCDN     MessageType = 14
	TypeWEN     MessageType = 15
	TypeSLI     MessageType = 16
	TypeACK     MessageType = 20
	TypeFSQ     MessageType = 21
	TypeFSR     MessageType = 22
)

// vendorType marks our own messages: on the wire their Message Type AVP has
// VendorID and the low bits; here they stand above all standard ones.
const vendorType MessageType = 0x8000

// Messages of our own.
const (
	TypeCertRequest  = vendorType | 1
	TypeCertReply    = vendorType | 2
	TypeKeyRequest   = vendorType | 3
	TypeKeyReply     = vendorType | 4
	TypeKeyChanged   = vendorType | 5
	TypeTicket       = vendorType | 6
	TypeDrain        = vendorType | 7
	TypeChangeOffer  = vendorType | 8
	TypeChangeAnswer = vendorType | 9
)

// VendorID marks our AVPs and messages: the number kept for documentation (RFC
// 5612) until one is registered.
const VendorID = 32473

// PWTypeWireGuard is our pseudowire type, IP over WireGuard, from the range that
// is given out first come, first served (RFC 3931, section 10.6).
const PWTypeWireGuard = 0x8057

// ProtocolVersion is the version of docs/protocol.md this package speaks.
const ProtocolVersion = 1

// MaxMessage is the longest message the Length field allows, in octets; until
// the peer is established far less is read.
const MaxMessage = 65535

// ResultCode is the first field of the Result Code AVP; its meaning depends on
// the message (RFC 3931, section 5.4.2).
type ResultCode uint16

// Result codes of StopCCN.
const (
	StopGeneral       ResultCode = 1
	StopError         ResultCode = 2
	StopAlreadyExists ResultCode = 3
	StopNotAuthorized ResultCode = 4
	StopVersion       ResultCode = 5
	StopShuttingDown  ResultCode = 6
	StopFSMError      ResultCode = 7
)

// Result codes of CDN.
const (
	CDNCarrierLost    ResultCode = 1
	CDNError          ResultCode = 2
	CDNAdministrative ResultCode = 3
	CDNNoFacilities   ResultCode = 4 // temporary
	CDNNoFacilitiesP  ResultCode = 5 // permanent
	CDNTieBreaker     ResultCode = 13
	CDNPWType         ResultCode = 14
	CDNFSMError       ResultCode = 16
)

// ErrorCode is the second field of the Result Code AVP.
type ErrorCode uint16

// General error codes (RFC 3931, section 5.4.2).
const (
	ErrorNone         ErrorCode = 0
	ErrorNoConnection ErrorCode = 1
	ErrorLength       ErrorCode = 2
	ErrorRange        ErrorCode = 3
	ErrorResources    ErrorCode = 4
	ErrorSessionID    ErrorCode = 5
	ErrorVendor       ErrorCode = 6
	ErrorTryAnother   ErrorCode = 7
	ErrorUnknownAVP   ErrorCode = 8
	ErrorTryNamed     ErrorCode = 9
)

// Cause is our vendor AVP beside a Result Code: what exactly, and so what the
// peer should do.
type Cause uint16

// The causes. Each has its sentence in docs/protocol.md.
const (
	CauseNone           Cause = 0
	CauseUnknownNetwork Cause = 1  // no network of that name here
	CauseNetworkRight   Cause = 2  // the node has no right to that network
	CausePrefixRight    Cause = 3  // the node may not advertise that prefix
	CausePrefixInUse    Cause = 4  // that prefix overlaps one in use
	CausePoolExhausted  Cause = 5  // no address is free now
	CauseRevoked        Cause = 6  // the node was revoked
	CauseKeyProof       Cause = 7  // possession of the session key was not proven
	CauseKeyInUse       Cause = 8  // that key belongs to another live session
	CauseUnknownResume  Cause = 9  // nothing to resume under these ids: reconnect
	CauseResumeProof    Cause = 10 // the proof of a resume does not hold: reconnect
	CauseClonedState    Cause = 11 // that attempt was made before, by another: reconnect
	CauseGraceOver      Cause = 12 // the session was suspended for too long
	CauseAdministrator  Cause = 13 // an administrator ended it
	CauseUser           Cause = 14 // the node's user ended it
	CauseLocal          Cause = 15 // the peer could not set itself up (see the text)
	CauseBusy           Cause = 16 // too many at once: retry later
	CauseStore          Cause = 17 // the journal cannot be written: retry later
	CauseVersion        Cause = 18 // no protocol version in common
	CauseCertificate    Cause = 19 // the certificate cannot be renewed
	CauseConfiguration  Cause = 20 // the gateway's configuration changed: reconnect
	CauseReplaced       Cause = 21 // the node has begun a new session in that network
	CauseKeyEpoch       Cause = 24 // that key epoch is not the next one, or a change is open already
	CauseKeyExchange    Cause = 25 // a share of the key exchange is no good
	CauseUnconfirmed    Cause = 26 // the new key carried no traffic in time: the old one stays
	CauseTicketForeign  Cause = 27 // no ticket that this gateway gave to this node
	CauseTicketOld      Cause = 28 // the ticket's time is over, or it was replaced by another
	CauseTicketUsed     Cause = 29 // the ticket was used before
	CauseTicketLeased   Cause = 30 // the ticket's address belongs to another session by now
	CauseDraining       Cause = 31 // the gateway is about to go and takes nothing new
	CauseCheckpoint     Cause = 32 // the two ends do not stand at the same checkpoint: reconnect
	CauseNoExtension    Cause = 33 // the network's policy lets the session live no longer than it does
	CauseChanging       Cause = 34 // another change of that session is open
	CauseToken          Cause = 35 // that is for the other end to change
	CauseTooShort       Cause = 36 // the lifetime asked for is shorter than the least: ask again with that
	CauseIdle           Cause = 40 // no inner packet for longer than the network allows
	CauseAbsolute       Cause = 41 // the session has lived as long as the network allows: reconnect
	CauseReauth         Cause = 42 // the node did not prove itself again in time: reconnect
	CauseExpired        Cause = 43 // the node's certificate is over: reconnect with another
	CauseUnrefreshed    Cause = 44 // the session was not refreshed in time: reconnect
)

// Advice is what the receiver of a refusal should do.
type Advice uint8

// The three ways on.
const (
	RetryLater Advice = iota
	Reconnect
	GiveUp
)

// Advice says whether a refusal with this cause is worth another try.
func (c Cause) Advice() Advice {
	switch c {
	case CauseUnknownResume, CauseResumeProof, CauseClonedState, CauseGraceOver, CauseConfiguration, CauseCheckpoint,
		CauseAbsolute, CauseReauth, CauseExpired, CauseUnrefreshed,
		CauseTicketForeign, CauseTicketOld, CauseTicketUsed, CauseTicketLeased:
		return Reconnect
	case CauseUnknownNetwork, CauseNetworkRight, CausePrefixRight, CauseRevoked, CauseVersion, CauseReplaced, CauseIdle,
		CauseNoExtension, CauseToken:
		return GiveUp
	}
	return RetryLater
}
