package wire

import (
	"encoding/binary"
	"net/netip"
)

// A message in a trace is the payload of a UDP datagram of RFC 768 in an IPv4
// packet of RFC 791.
const (
	l2tpPort = 1701 // RFC 3931, section 4.1.2

	ipv4HeaderLen = 20
	udpHeaderLen  = 8
	maxDatagram   = 65535 // octets of an IPv4 packet
	maxWrapped    = maxDatagram - ipv4HeaderLen - udpHeaderLen
	protocolUDP   = 17
)

// Ends that have no IPv4 address are shown with one kept for documentation (RFC
// 5737).
var (
	someLocal  = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	someRemote = netip.AddrFrom4([4]byte{192, 0, 2, 2})
)

func (p Path) isIPv4() bool { return p.Local.Addr().Unmap().Is4() && p.Remote.Addr().Unmap().Is4() }

// order is p as a message went.
func (p Path) order(sent bool) (from, to netip.AddrPort) {
	if sent {
		return p.Local, p.Remote
	}
	return p.Remote, p.Local
}

// asL2TP is p as L2TPv3 over UDP and IPv4 would have it: the responder has port
// 1701, the initiator the port that it has (RFC 3931, section 4.1.2). Dissectors
// look at the lower port first, so that the initiator's must not be below.
func (p Path) asL2TP() Path {
	local, remote := someLocal, someRemote
	if p.isIPv4() {
		local, remote = p.Local.Addr().Unmap(), p.Remote.Addr().Unmap()
	}
	localPort, remotePort := max(p.Local.Port(), l2tpPort), uint16(l2tpPort)
	if !p.Dialled {
		localPort, remotePort = l2tpPort, max(p.Remote.Port(), l2tpPort)
	}
	return Path{netip.AddrPortFrom(local, localPort), netip.AddrPortFrom(remote, remotePort), p.Dialled}
}

// wrap makes the packet of a message of at most maxWrapped octets.
func wrap(p Path, sent bool, message []byte) []byte {
	from, to := p.asL2TP().order(sent)
	src, dst := from.Addr().As4(), to.Addr().As4()
	n := uint16(udpHeaderLen + len(message))

	b := make([]byte, 0, ipv4HeaderLen+int(n))
	b = append(b, 0x45, 0) // version 4, five words
	b = binary.BigEndian.AppendUint16(b, ipv4HeaderLen+n)
	b = append(b, 0, 0, 0x40, 0, 64, protocolUDP, 0, 0) // not fragmented, TTL 64, checksum below
	b = append(append(b, src[:]...), dst[:]...)
	binary.BigEndian.PutUint16(b[10:], ^sum(0, b))

	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, n)
	b = append(append(b, 0, 0), message...)
	check := ^sum(uint32(protocolUDP)+uint32(n), b[12:]) // pseudo header: addresses, protocol, length
	if check == 0 {
		check = 0xffff // RFC 768: 0 means that there is none
	}
	binary.BigEndian.PutUint16(b[ipv4HeaderLen+6:], check)
	return b
}

// sum is the ones' complement sum of RFC 1071 over b, added to what is there.
func sum(to uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		to += uint32(binary.BigEndian.Uint16(b)) // 32,768 words at most: no overflow
	}
	if len(b) == 1 {
		to += uint32(b[0]) << 8
	}
	to = to>>16 + to&0xffff
	return uint16(to>>16 + to)
}
