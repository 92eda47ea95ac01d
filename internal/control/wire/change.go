package wire

import (
	"net/netip"

	"tunneld/internal/session"
)

// ChangeOffer offers other terms for a live session: docs/protocol.md, "Changes
// of a live session". What is absent stays.
type ChangeOffer struct {
	LocalID, RemoteID uint32
	RequestID         session.ID
	Addresses         []netip.Addr // the node's; a gateway's to offer, as the next three
	Peers             []netip.Addr // the gateway's
	MTU               uint16
	Timers            Timers
	Lifetime          *Lifetime // a node's: what it asks to be left
}

// ChangeAnswer answers a ChangeOffer with that RequestID: without Result its
// terms hold from now on.
type ChangeAnswer struct {
	LocalID, RemoteID uint32
	RequestID         session.ID
	Lifetime          *Lifetime // granted
	Result            *Result   // nothing has changed
}

// Type of each message.
func (*ChangeOffer) Type() MessageType  { return TypeChangeOffer }
func (*ChangeAnswer) Type() MessageType { return TypeChangeAnswer }

var (
	changeOfferSpec = define((*ChangeOffer).check,
		must(avpLocalID, func(m *ChangeOffer) *uint32 { return &m.LocalID }),
		must(avpRemoteID, func(m *ChangeOffer) *uint32 { return &m.RemoteID }),
		must(avpRequestID, func(m *ChangeOffer) *session.ID { return &m.RequestID }),
		list(avpAddress, func(m *ChangeOffer) *[]netip.Addr { return &m.Addresses }),
		list(avpPeer, func(m *ChangeOffer) *[]netip.Addr { return &m.Peers }),
		may(avpMTU, func(m *ChangeOffer) *uint16 { return &m.MTU }),
		may(avpTimers, func(m *ChangeOffer) *Timers { return &m.Timers }),
		mayPoint(avpLifetime, func(m *ChangeOffer) **Lifetime { return &m.Lifetime }),
	)
	changeAnswerSpec = define((*ChangeAnswer).check,
		must(avpLocalID, func(m *ChangeAnswer) *uint32 { return &m.LocalID }),
		must(avpRemoteID, func(m *ChangeAnswer) *uint32 { return &m.RemoteID }),
		must(avpRequestID, func(m *ChangeAnswer) *session.ID { return &m.RequestID }),
		mayPoint(avpLifetime, func(m *ChangeAnswer) **Lifetime { return &m.Lifetime }),
		result(false, func(m *ChangeAnswer, grow bool) *Result { return grown(&m.Result, grow) }),
	)
)

func (m *ChangeOffer) check() error {
	if len(m.Peers) > 0 && len(m.Addresses) == 0 {
		return missing("Peer Address stands without Address")
	}
	if len(m.Addresses) == 0 && m.MTU == 0 && m.Timers == (Timers{}) && m.Lifetime == nil {
		return missing("an offer of nothing")
	}
	return nil
}

func (m *ChangeAnswer) check() error {
	if m.Result != nil && m.Result.Code == 0 {
		return missing("Cause stands without Result Code")
	}
	if m.Result != nil && m.Lifetime != nil {
		return missing("either Lifetime or Result Code, not both")
	}
	return nil
}
