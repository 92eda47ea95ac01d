package engine

import (
	"net/netip"

	"tunneld/internal/session"
)

// A Carrier carries the datagrams of sessions where UDP does not: over a stream
// of TLS, for example. Its methods may be called from any goroutine.
type Carrier interface {
	// Send takes a copy of a datagram and never waits: one that its bounded
	// queue has no room for is dropped, and it reports false.
	Send(datagram []byte) bool
	// Remote is the peer's address on the carrier, by which handshakes are
	// limited and which Stats shows.
	Remote() netip.AddrPort
}

// Switchable is a Device whose sessions change carriers while packets flow, with
// no new handshake. The reference engine's is none: wireguard-go follows every
// packet that opens, so a late one would take the session back.
type Switchable interface {
	// SetCarrier has a session sent through c from the next batch on; nil: by
	// UDP, to where the peer was last. What still arrives another way is taken,
	// but only SetCarrier leads back.
	SetCarrier(id session.ID, c Carrier) error
}

// Receiving is an Engine that takes datagrams from carriers.
type Receiving interface {
	// Receive returns what the reader of c gives its datagrams to, for one
	// goroutine at a time. They are spoilt, and not used after it returns.
	Receive(c Carrier) func(datagrams ...[]byte)
}
