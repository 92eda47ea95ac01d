package reference

import (
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"

	"tunneld/internal/tunnel/engine/udp"
)

// An endpoint is where a peer is, as wireguard-go wants it. Where Dst is
// invalid what is sent is dropped.
type endpoint struct {
	*udp.Endpoint
	epoch uint32 // of the hub, in which it was made
}

var _ conn.Endpoint = (*endpoint)(nil)

// newEndpoint makes the endpoint of dst; the routing table chooses the source.
func newEndpoint(dst netip.AddrPort) *endpoint {
	return &endpoint{Endpoint: udp.NewEndpoint(dst, udp.Source{}, 0)}
}

// ClearSrc makes the routing table choose the source from now on.
func (e *endpoint) ClearSrc() { e.ClearSource() }

// SrcIP is our address on this path; the zero Addr if the routing table chooses.
func (e *endpoint) SrcIP() netip.Addr {
	if e.SourceCleared() {
		return netip.Addr{}
	}
	return e.Src.Addr
}

// SrcToString is SrcIP as text.
func (e *endpoint) SrcToString() string { return e.SrcIP().String() }

// DstIP is the peer's address.
func (e *endpoint) DstIP() netip.Addr { return e.Dst.Addr() }

// DstToString is the peer's address and port; empty for nowhere.
func (e *endpoint) DstToString() string {
	if !e.Dst.IsValid() {
		return ""
	}
	return e.Dst.String()
}

// DstToBytes is what cookies are bound to.
func (e *endpoint) DstToBytes() []byte {
	b, _ := e.Dst.MarshalBinary() // never fails
	return b
}
