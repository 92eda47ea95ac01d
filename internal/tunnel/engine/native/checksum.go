package native

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum (RFC 1071) in the host's byte order: sums are added up
// as 64-bit words with end-around carry, and folded and turned to the wire's
// order once, at the end (RFC 1071, section 2, part B: byte order does not
// matter).

// sum adds the octets of b to a sum that was begun on an even octet.
func sum(b []byte, s uint64) uint64 {
	var c uint64
	for len(b) >= 64 {
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(b), 0)
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(b[8:]), c)
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(b[16:]), c)
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(b[24:]), c)
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(b[32:]), c)
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(b[40:]), c)
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(b[48:]), c)
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(b[56:]), c)
		s += c
		b = b[64:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(b), 0)
		s += c
		b = b[8:]
	}
	if len(b) > 0 {
		var rest [8]byte
		copy(rest[:], b)
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(rest[:]), 0)
		s += c
	}
	return s
}

// fold reduces a sum to 16 bits, in the host's byte order.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// putChecksum writes the checksum of what s summed up.
func putChecksum(b []byte, s uint64) { binary.NativeEndian.PutUint16(b, ^fold(s)) }

// putPartial writes a sum that the kernel completes: not inverted.
func putPartial(b []byte, s uint64) { binary.NativeEndian.PutUint16(b, fold(s)) }

// pseudoSum sums the pseudo header of TCP and UDP (RFC 9293, section 3.1;
// RFC 8200, section 8.1): addrs are source and destination.
func pseudoSum(protocol byte, addrs []byte, length int) uint64 {
	var tail [8]byte
	binary.BigEndian.PutUint32(tail[:], uint32(length))
	tail[7] = protocol
	return sum(tail[:], sum(addrs, 0))
}
