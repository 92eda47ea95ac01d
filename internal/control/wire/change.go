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
	// HasRoutes says that Routes, also when empty, is offered; a gateway's.
	HasRoutes bool           `json:",omitempty"`
	Routes    []netip.Prefix `json:",omitempty"`
	Expires   *Expires       `json:",omitempty"` // the refresher's: a refresh, for so long
}

// ChangeAnswer answers a ChangeOffer with that RequestID: without Result its
// terms hold from now on.
type ChangeAnswer struct {
	LocalID, RemoteID uint32
	RequestID         session.ID
	Lifetime          *Lifetime // granted
	Result            *Result   // nothing has changed
	Expires           *Expires  `json:",omitempty"` // agreed: the session is refreshed
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
		may(avpReplaceRoutes, func(m *ChangeOffer) *bool { return &m.HasRoutes }),
		list(avpRoute, func(m *ChangeOffer) *[]netip.Prefix { return &m.Routes }),
		mayPoint(avpExpires, func(m *ChangeOffer) **Expires { return &m.Expires }),
	)
	changeAnswerSpec = define((*ChangeAnswer).check,
		must(avpLocalID, func(m *ChangeAnswer) *uint32 { return &m.LocalID }),
		must(avpRemoteID, func(m *ChangeAnswer) *uint32 { return &m.RemoteID }),
		must(avpRequestID, func(m *ChangeAnswer) *session.ID { return &m.RequestID }),
		mayPoint(avpLifetime, func(m *ChangeAnswer) **Lifetime { return &m.Lifetime }),
		result(false, func(m *ChangeAnswer, grow bool) *Result { return grown(&m.Result, grow) }),
		floor(func(m *ChangeAnswer, grow bool) *Result { return grown(&m.Result, grow) }),
		mayPoint(avpExpires, func(m *ChangeAnswer) **Expires { return &m.Expires }),
	)
)

func (m *ChangeOffer) check() error {
	if len(m.Peers) > 0 && len(m.Addresses) == 0 {
		return missing("Peer Address stands without Address")
	}
	if len(m.Routes) > 0 && !m.HasRoutes {
		return missing("Route stands without Replace Routes")
	}
	if len(m.Addresses) == 0 && m.MTU == 0 && m.Timers == (Timers{}) && m.Lifetime == nil && !m.HasRoutes && m.Expires == nil {
		return missing("an offer of nothing")
	}
	return nil
}

func (m *ChangeAnswer) check() error {
	if m.Result != nil && (m.Lifetime != nil || m.Expires != nil) {
		return missing("either Lifetime or Session Expires or Result Code, not both")
	}
	return checkCode(m.Result)
}
