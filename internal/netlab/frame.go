package netlab

import (
	"encoding/binary"
	"net/netip"
)

// Numbers of Ethernet, IP and TCP that a relay must know.
const (
	ethHeaderLen = 14
	etherIPv4    = 0x0800
	etherIPv6    = 0x86dd

	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

// packet is what parse found in an Ethernet frame. Slices alias the frame.
type packet struct {
	eth      []byte // the Ethernet header
	proto    uint8
	src, dst netip.AddrPort // port 0 where there is none
	payload  []byte         // from the transport header on, without Ethernet padding
}

// parse reads the headers of an Ethernet frame that carries IP. It follows no
// IPv6 extension headers and no fragments but the first: ok is then false, or
// the ports are zero.
func parse(frame []byte) (p packet, ok bool) {
	if len(frame) < ethHeaderLen {
		return packet{}, false
	}
	p.eth = frame[:ethHeaderLen]
	ip := frame[ethHeaderLen:]
	var src, dst netip.Addr
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherIPv4:
		if len(ip) < 20 {
			return packet{}, false
		}
		header, total := int(ip[0]&0x0f)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if header < 20 || total < header || total > len(ip) {
			return packet{}, false
		}
		p.proto, p.payload = ip[9], ip[header:total]
		if binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 { // a later fragment has no transport header
			p.payload = nil
		}
		src, dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	case etherIPv6:
		if len(ip) < 40 {
			return packet{}, false
		}
		length := int(binary.BigEndian.Uint16(ip[4:]))
		if 40+length > len(ip) {
			return packet{}, false
		}
		p.proto, p.payload = ip[6], ip[40:40+length]
		src, dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
	default:
		return packet{}, false
	}
	var sport, dport uint16
	if (p.proto == protoTCP || p.proto == protoUDP) && len(p.payload) >= 4 {
		sport, dport = binary.BigEndian.Uint16(p.payload), binary.BigEndian.Uint16(p.payload[2:])
	}
	p.src, p.dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return p, true
}

// neighbourly reports whether p is neighbour or router discovery or multicast
// listener reporting: housekeeping of a link, which is not impaired.
func (p packet) neighbourly() bool {
	if p.proto == 0 { // hop-by-hop options in front of multicast listener reports
		return true
	}
	return p.proto == protoICMPv6 && len(p.payload) > 0 &&
		(p.payload[0] >= 133 && p.payload[0] <= 137 || p.payload[0] == 143)
}

// tcpSegment is the part of a TCP header that a forger needs.
type tcpSegment struct {
	seq, ack uint32
	flags    byte
	end      uint32 // the sequence number after this segment
}

func (p packet) tcp() (s tcpSegment, ok bool) {
	if p.proto != protoTCP || len(p.payload) < 20 {
		return tcpSegment{}, false
	}
	header := int(p.payload[12]>>4) * 4
	if header < 20 || header > len(p.payload) {
		return tcpSegment{}, false
	}
	s.seq, s.ack = binary.BigEndian.Uint32(p.payload[4:]), binary.BigEndian.Uint32(p.payload[8:])
	s.flags = p.payload[13]
	s.end = s.seq + uint32(len(p.payload)-header)
	if s.flags&(tcpSYN|tcpFIN) != 0 { // each takes a number (RFC 9293, section 3.4)
		s.end++
	}
	return s, true
}

// resetFrame forges a TCP reset in an Ethernet frame.
func resetFrame(eth []byte, src, dst netip.AddrPort, seq, ack uint32) []byte {
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], seq)
	binary.BigEndian.PutUint32(tcp[8:], ack)
	tcp[12], tcp[13] = 5<<4, tcpRST|tcpACK

	from, to := src.Addr().AsSlice(), dst.Addr().AsSlice()
	pseudo := append(append([]byte{}, from...), to...)
	pseudo = append(pseudo, 0, protoTCP, 0, byte(len(tcp))) // sums up alike in both families
	binary.BigEndian.PutUint16(tcp[16:], checksum(append(pseudo, tcp...)))

	frame := append([]byte{}, eth[:ethHeaderLen]...)
	if src.Addr().Is4() {
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, protoTCP
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(tcp)))
		copy(ip[12:], from)
		copy(ip[16:], to)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		return append(append(frame, ip...), tcp...)
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, protoTCP, 64
	binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
	copy(ip[8:], from)
	copy(ip[24:], to)
	return append(append(frame, ip...), tcp...)
}

// checksum is the Internet checksum of RFC 1071 over b.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
