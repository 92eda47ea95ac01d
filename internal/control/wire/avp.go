package wire

import "encoding/binary"

// RFC 3931, section 5.1: the AVP header, and what its 10 bits of Length leave
// for the value.
const (
	avpHeaderLen = 6
	avpMaxLen    = 1023
	avpMaxValue  = avpMaxLen - avpHeaderLen

	avpMandatory = 0x8000 // M
	avpHidden    = 0x4000 // H
	avpLenMask   = 0x03ff
)

// ietf is the Vendor ID of the AVPs of the RFCs.
const ietf = 0

// An attr is one kind of AVP. min and max are the octets of its value.
type attr struct {
	vendor, number uint16
	name           string
	mandatory      bool // the M bit we send; a received one is only looked at when something is wrong
	min, max       int
}

// rawAVP is an AVP as it lies in a message. value aliases the message.
type rawAVP struct {
	mandatory, hidden bool
	vendor, number    uint16
	value             []byte
}

// splitAVP takes the first AVP off b (RFC 3931, section 5.1). Reserved bits are
// ignored, as the RFC wants.
func splitAVP(b []byte) (a rawAVP, rest []byte, err error) {
	if len(b) < avpHeaderLen {
		return rawAVP{}, nil, lengthError("%d octets where an AVP header of %d should be", len(b), avpHeaderLen)
	}
	flags := binary.BigEndian.Uint16(b)
	n := int(flags & avpLenMask)
	if n < avpHeaderLen || n > len(b) { // "The minimum Length of an AVP is 6."
		return rawAVP{}, nil, lengthError("AVP of Length %d where %d octets are left", n, len(b))
	}
	return rawAVP{
		mandatory: flags&avpMandatory != 0,
		hidden:    flags&avpHidden != 0,
		vendor:    binary.BigEndian.Uint16(b[2:]),
		number:    binary.BigEndian.Uint16(b[4:]),
		value:     b[avpHeaderLen:n:n],
	}, b[n:], nil
}

// appendAVPHeader begins an AVP whose Length closeAVP fills in.
func appendAVPHeader(b []byte, a *attr) []byte {
	var flags uint16
	if a.mandatory {
		flags = avpMandatory
	}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, a.vendor)
	return binary.BigEndian.AppendUint16(b, a.number)
}

// closeAVP writes the Length of the AVP that begins at start and ends b.
func closeAVP(b []byte, start int) ([]byte, error) {
	n := len(b) - start
	if n > avpMaxLen {
		return nil, lengthError("value of %d octets, an AVP holds %d", n-avpHeaderLen, avpMaxValue)
	}
	b[start] |= byte(n >> 8) // the M bit is there already
	b[start+1] = byte(n)
	return b, nil
}

// appendMessageType writes the Message Type AVP, the first of every message
// (RFC 3931, section 5.4.1). vendor marks messages of our own, which a peer that
// does not know them may ignore.
func appendMessageType(b []byte, vendor, number uint16, mandatory bool) []byte {
	a := attr{vendor: vendor, number: numMessageType, mandatory: mandatory}
	start := len(b)
	b = binary.BigEndian.AppendUint16(appendAVPHeader(b, &a), number)
	b, _ = closeAVP(b, start) // 8 octets always fit
	return b
}
