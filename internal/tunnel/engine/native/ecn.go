package native

import "encoding/binary"

// Congestion marks, the low two bits of the traffic class (RFC 3168,
// section 5). The outer header carries those of the inner (RFC 6040, section
// 4.1, normal mode), and nothing else of its traffic class.
const (
	ecnMask   = 3
	ecnNot    = 0 // not capable
	ecnECT1   = 1
	ecnECT0   = 2
	ecnMarked = 3 // congestion experienced
)

// innerECN reads the mark of an IP packet.
func innerECN(p []byte) byte {
	if p[0]>>4 == 6 {
		return p[1] >> 4 & ecnMask
	}
	return p[1] & ecnMask
}

// combineECN gives p the mark that inner and outer header make together
// (RFC 6040, figure 4), and reports whether p may go on: one that is marked
// outside though nobody inside would understand it must be dropped.
func combineECN(p []byte, outer byte) bool {
	inner := innerECN(p)
	switch {
	case outer == ecnMarked && inner == ecnNot:
		return false
	case outer == ecnMarked && inner != ecnMarked:
		setECN(p, ecnMarked)
	case outer == ecnECT1 && inner == ecnECT0:
		setECN(p, ecnECT1)
	}
	return true
}

// setECN writes the mark of an IP packet, and corrects the header checksum of
// IPv4 (RFC 1624, equation 3).
func setECN(p []byte, mark byte) {
	if p[0]>>4 == 6 {
		p[1] = p[1]&^(ecnMask<<4) | mark<<4
		return
	}
	before := binary.BigEndian.Uint16(p)
	p[1] = p[1]&^ecnMask | mark
	after := binary.BigEndian.Uint16(p)
	s := uint32(^binary.BigEndian.Uint16(p[10:])) + uint32(^before) + uint32(after)
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	binary.BigEndian.PutUint16(p[10:], ^uint16(s))
}
