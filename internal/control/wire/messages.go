package wire

import (
	"net/netip"
	"slices"
	"time"

	"tunneld/internal/session"
)

// Type of each message.
func (*SCCRQ) Type() MessageType       { return TypeSCCRQ }
func (*SCCRP) Type() MessageType       { return TypeSCCRP }
func (*SCCCN) Type() MessageType       { return TypeSCCCN }
func (*StopCCN) Type() MessageType     { return TypeStopCCN }
func (*Hello) Type() MessageType       { return TypeHello }
func (*ICRQ) Type() MessageType        { return TypeICRQ }
func (*ICRP) Type() MessageType        { return TypeICRP }
func (*ICCN) Type() MessageType        { return TypeICCN }
func (*CDN) Type() MessageType         { return TypeCDN }
func (*WEN) Type() MessageType         { return TypeWEN }
func (*SLI) Type() MessageType         { return TypeSLI }
func (*ACK) Type() MessageType         { return TypeACK }
func (*FSQ) Type() MessageType         { return TypeFSQ }
func (*FSR) Type() MessageType         { return TypeFSR }
func (*CertRequest) Type() MessageType { return TypeCertRequest }
func (*CertReply) Type() MessageType   { return TypeCertReply }

// Type is the type where the vendor is the IETF or us, else 0.
func (m *UnknownMessage) Type() MessageType { return typeOf(m.Vendor, m.Number) }

// specs holds every message of this package (RFC 3931, section 6; RFC 4951,
// section 4; docs/protocol.md, "Messages").
var specs = byType(
	define((*SCCRQ).check,
		must(avpHostName, func(m *SCCRQ) *string { return &m.HostName }),
		must(avpRouterID, func(m *SCCRQ) *uint32 { return &m.RouterID }),
		must(avpAssignedID, func(m *SCCRQ) *uint32 { return &m.AssignedID }),
		must(avpPseudowires, func(m *SCCRQ) *[]uint16 { return &m.Pseudowires }),
		may(avpReceiveWindow, func(m *SCCRQ) *uint16 { return &m.ReceiveWindow }),
		may(avpTieBreaker, func(m *SCCRQ) *uint64 { return &m.TieBreaker }),
		may(avpVendorName, func(m *SCCRQ) *string { return &m.VendorName }),
		profile(func(m *SCCRQ) *Profile { return &m.Profile }),
		mayPoint(avpFailover, func(m *SCCRQ) **Failover { return &m.Failover }),
		mayPoint(avpRecovery, func(m *SCCRQ) **Recovery { return &m.Recovery }),
		mayPoint(avpProof, func(m *SCCRQ) **Proof { return &m.Proof }),
		mayPoint(avpCursor, func(m *SCCRQ) **Cursor { return &m.Cursor }),
		may(avpRecoveryBootID, func(m *SCCRQ) *session.ID { return &m.RecoveryBootID }),
	),
	define((*SCCRP).check,
		must(avpHostName, func(m *SCCRP) *string { return &m.HostName }),
		must(avpRouterID, func(m *SCCRP) *uint32 { return &m.RouterID }),
		must(avpAssignedID, func(m *SCCRP) *uint32 { return &m.AssignedID }),
		must(avpPseudowires, func(m *SCCRP) *[]uint16 { return &m.Pseudowires }),
		may(avpReceiveWindow, func(m *SCCRP) *uint16 { return &m.ReceiveWindow }),
		may(avpVendorName, func(m *SCCRP) *string { return &m.VendorName }),
		profile(func(m *SCCRP) *Profile { return &m.Profile }),
		mayPoint(avpFailover, func(m *SCCRP) **Failover { return &m.Failover }),
		mayPoint(avpProof, func(m *SCCRP) **Proof { return &m.Proof }),
		mayPoint(avpCursor, func(m *SCCRP) **Cursor { return &m.Cursor }),
		may(avpDelay, func(m *SCCRP) *time.Duration { return &m.Spread }),
		list(avpKeypair, func(m *SCCRP) *[]Keypair { return &m.Kept }),
	),
	define[SCCCN](nil),
	define((*StopCCN).check,
		may(avpAssignedID, func(m *StopCCN) *uint32 { return &m.AssignedID }),
		result(true, func(m *StopCCN, _ bool) *Result { return &m.Result }),
		may(avpRequestID, func(m *StopCCN) *session.ID { return &m.RequestID }),
		list(avpTryGateway, func(m *StopCCN) *[]string { return &m.Gateways }),
	),
	define[Hello](nil),
	define[ACK](nil),
	define((*ICRQ).check,
		must(avpLocalID, func(m *ICRQ) *uint32 { return &m.LocalID }),
		must(avpNoRemoteID, func(m *ICRQ) *uint32 { return &m.RemoteID }),
		must(avpSerial, func(m *ICRQ) *uint32 { return &m.Serial }),
		must(avpPWType, func(m *ICRQ) *uint16 { return &m.PWType }),
		must(avpRemoteEnd, func(m *ICRQ) *string { return &m.RemoteEnd }),
		must(avpCircuitStatus, func(m *ICRQ) *CircuitStatus { return &m.CircuitStatus }),
		may(avpTieBreaker, func(m *ICRQ) *uint64 { return &m.TieBreaker }),
		must(avpPublicKey, func(m *ICRQ) *[32]byte { return &m.PublicKey }),
		must(avpKeyProof, func(m *ICRQ) *[32]byte { return &m.KeyProof }),
		list(avpAdvertise, func(m *ICRQ) *[]netip.Prefix { return &m.Advertise }),
		may(avpRequestID, func(m *ICRQ) *session.ID { return &m.RequestID }),
		chunked(avpTicket, false, func(m *ICRQ) *[]byte { return &m.Ticket }),
		may(avpKeyEpoch, func(m *ICRQ) *uint32 { return &m.KeyEpoch }),
		mayPoint(avpExpires, func(m *ICRQ) **Expires { return &m.Expires }),
	),
	define[ICRP](nil,
		must(avpLocalID, func(m *ICRP) *uint32 { return &m.LocalID }),
		must(avpRemoteID, func(m *ICRP) *uint32 { return &m.RemoteID }),
		must(avpCircuitStatus, func(m *ICRP) *CircuitStatus { return &m.CircuitStatus }),
		must(avpSession, func(m *ICRP) *session.ID { return &m.Session }),
		must(avpPublicKey, func(m *ICRP) *[32]byte { return &m.PublicKey }),
		must(avpKeyProof, func(m *ICRP) *[32]byte { return &m.KeyProof }),
		must(avpKeyEpoch, func(m *ICRP) *uint32 { return &m.KeyEpoch }),
		list(avpAddress, func(m *ICRP) *[]netip.Addr { return &m.Addresses }),
		list(avpPeer, func(m *ICRP) *[]netip.Addr { return &m.Peers }),
		list(avpRoute, func(m *ICRP) *[]netip.Prefix { return &m.Routes }),
		may(avpMTU, func(m *ICRP) *uint16 { return &m.MTU }),
		may(avpTimers, func(m *ICRP) *Timers { return &m.Timers }),
		may(avpLifetime, func(m *ICRP) *Lifetime { return &m.Lifetime }),
		may(avpRequestID, func(m *ICRP) *session.ID { return &m.RequestID }),
		mayPoint(avpExpires, func(m *ICRP) **Expires { return &m.Expires }),
	),
	define[ICCN](nil, // RFC 3931, section 6.8 leaves Circuit Status to the sender; here it opens the gate
		must(avpLocalID, func(m *ICCN) *uint32 { return &m.LocalID }),
		must(avpRemoteID, func(m *ICCN) *uint32 { return &m.RemoteID }),
		must(avpCircuitStatus, func(m *ICCN) *CircuitStatus { return &m.CircuitStatus }),
	),
	define((*CDN).check,
		must(avpLocalIDOrNone, func(m *CDN) *uint32 { return &m.LocalID }),
		must(avpRemoteIDOrNone, func(m *CDN) *uint32 { return &m.RemoteID }),
		result(true, func(m *CDN, _ bool) *Result { return &m.Result }),
		floor(func(m *CDN, _ bool) *Result { return &m.Result }),
		mayPoint(avpStatistics, func(m *CDN) **Statistics { return &m.Statistics }),
		may(avpRequestID, func(m *CDN) *session.ID { return &m.RequestID }),
	),
	define((*SLI).check,
		must(avpLocalID, func(m *SLI) *uint32 { return &m.LocalID }),
		must(avpRemoteID, func(m *SLI) *uint32 { return &m.RemoteID }),
		mayPoint(avpCircuitStatus, func(m *SLI) **CircuitStatus { return &m.CircuitStatus }),
		may(avpReplaceRoutes, func(m *SLI) *bool { return &m.HasRoutes }),
		list(avpRoute, func(m *SLI) *[]netip.Prefix { return &m.Routes }),
		mayPoint(avpLifetime, func(m *SLI) **Lifetime { return &m.Lifetime }),
		may(avpStamp, func(m *SLI) *Stamp { return &m.Stamp }),
		may(avpRequestID, func(m *SLI) *session.ID { return &m.RequestID }),
	),
	define[WEN](nil,
		must(avpLocalID, func(m *WEN) *uint32 { return &m.LocalID }),
		must(avpRemoteID, func(m *WEN) *uint32 { return &m.RemoteID }),
		must(avpCircuitErrors, func(m *WEN) *CircuitErrors { return &m.CircuitErrors }),
		mayPoint(avpStatistics, func(m *WEN) **Statistics { return &m.Statistics }),
	),
	define[FSQ](nil,
		list(avpAskedSession, func(m *FSQ) *[]SessionPair { return &m.Sessions }),
		may(avpCheckpoint, func(m *FSQ) *uint64 { return &m.Checkpoint }),
	),
	define[FSR](nil,
		list(avpSessionState, func(m *FSR) *[]SessionPair { return &m.Sessions }),
		may(avpCheckpoint, func(m *FSR) *uint64 { return &m.Checkpoint }),
	),
	define[CertRequest](nil,
		must(avpRequestID, func(m *CertRequest) *session.ID { return &m.RequestID }),
		chunked(avpCSR, true, func(m *CertRequest) *[]byte { return &m.CSR }),
	),
	define((*CertReply).check,
		must(avpRequestID, func(m *CertReply) *session.ID { return &m.RequestID }),
		chunked(avpCertificate, false, func(m *CertReply) *[]byte { return &m.Certificate }),
		result(false, func(m *CertReply, grow bool) *Result {
			if m.Result == nil && grow {
				m.Result = new(Result)
			}
			return m.Result
		}),
	),
	changeOfferSpec, changeAnswerSpec, keyRequestSpec, keyReplySpec, keyChangedSpec, ticketSpec, drainSpec,
)

func byType(list ...*spec) map[MessageType]*spec {
	m := make(map[MessageType]*spec, len(list))
	for _, s := range list {
		m[s.typ] = s
	}
	return m
}

// profile is what SCCRQ and SCCRP say of their sender's protocol.
func profile[M any](of func(*M) *Profile) []field {
	return slices.Concat(
		must(avpVersion, func(m *M) *uint16 { return &of(m).Version }),
		may(avpCapabilities, func(m *M) *uint32 { return &of(m).Capabilities }),
		must(avpBootID, func(m *M) *session.ID { return &of(m).BootID }),
		must(avpKeyShare, func(m *M) *[32]byte { return &of(m).KeyShare }),
	)
}

// check refuses half a resume: docs/protocol.md, "Resume".
func (m *SCCRQ) check() error {
	resume := m.Recovery != nil
	if resume != (m.Proof != nil) || resume != (m.Cursor != nil) || resume == m.RecoveryBootID.IsZero() {
		return missing("Tunnel Recovery, Resume Proof, Cursor and Recovery Boot ID go together")
	}
	return nil
}

func (m *SCCRP) check() error {
	if (m.Proof != nil) != (m.Cursor != nil) {
		return missing("Resume Proof and Cursor go together")
	}
	if len(m.Kept) > 0 && m.Proof == nil {
		return missing("Kept Keypair stands without Resume Proof")
	}
	return nil
}

func (m *CDN) check() error {
	if m.LocalID == 0 && m.RemoteID == 0 {
		return rangeError("both session ids are 0, so no session is named")
	}
	return nil
}

func (m *SLI) check() error {
	if len(m.Routes) > 0 && !m.HasRoutes {
		return missing("Route stands without Replace Routes")
	}
	return nil
}

func (m *CertReply) check() error {
	if (len(m.Certificate) > 0) == (m.Result != nil) {
		return missing("either Certificate or Result Code, not both")
	}
	if m.Result != nil && m.Result.Code == 0 {
		return missing("Cause stands without Result Code")
	}
	return nil
}
