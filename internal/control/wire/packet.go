package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// RFC 3931, section 3.2.1: T, L and S set, version 3. The other bits are
// reserved: sent as 0, ignored on receipt.
const (
	headerLen   = 12
	headerFlags = 0xc803
	headerMask  = 0xc80f
)

// UnknownMessage is a message of a type that is not known here and that its
// sender lets us ignore: the M bit of its Message Type AVP is 0 (RFC 3931,
// section 5.4.1). It still takes an Ns.
type UnknownMessage struct{ Vendor, Number uint16 }

// Append appends p as octets to b. It fails, and returns b as it was, when p
// holds what Parse would refuse.
func (p *Packet) Append(b []byte) ([]byte, error) {
	start := len(b)
	out := binary.BigEndian.AppendUint16(b, headerFlags)
	out = append(out, 0, 0) // Length, below
	out = binary.BigEndian.AppendUint32(out, p.ConnID)
	out = binary.BigEndian.AppendUint16(out, p.Ns)
	out = binary.BigEndian.AppendUint16(out, p.Nr)

	out, err := appendMessage(out, p.Message)
	if err != nil {
		return b, err
	}
	n := len(out) - start
	if n > MaxMessage {
		return b, at(lengthError("message of %d octets, at most %d fit", n, MaxMessage), p.Message.Type(), "")
	}
	binary.BigEndian.PutUint16(out[start+2:], uint16(n))
	return out, nil
}

func appendMessage(b []byte, m Message) ([]byte, error) {
	if u, ok := m.(*UnknownMessage); ok {
		if specs[u.Type()] != nil {
			return nil, fmt.Errorf("wire: %v is no unknown message", u.Type())
		}
		return appendMessageType(b, u.Vendor, u.Number, false), nil
	}
	if m == nil || specs[m.Type()] == nil {
		return nil, fmt.Errorf("wire: %T is no message of this package", m)
	}
	t := m.Type()
	s := specs[t]
	if s.check != nil {
		if err := s.check(m); err != nil {
			return nil, at(err, t, "")
		}
	}
	vendor, number := t.number()
	b = appendMessageType(b, vendor, number, vendor == ietf)
	var err error
	for _, f := range s.fields {
		if b, err = f.append(b, m); err != nil {
			return nil, at(err, t, f.name)
		}
	}
	return b, nil
}

// number is how t stands in a Message Type AVP.
func (t MessageType) number() (vendor, number uint16) {
	if t&vendorType != 0 {
		return VendorID, uint16(t &^ vendorType)
	}
	return ietf, uint16(t)
}

// typeOf is the opposite of number; 0, which is reserved, stands for what this
// package has no name for.
func typeOf(vendor, number uint16) MessageType {
	switch t := MessageType(number); {
	case t&vendorType != 0:
		return 0
	case vendor == VendorID:
		return t | vendorType
	case vendor == ietf:
		return t
	}
	return 0
}

// checkFlags looks at the first two octets of a message.
func checkFlags(b []byte) error {
	if v := binary.BigEndian.Uint16(b); v&headerMask != headerFlags {
		return &Error{Kind: ErrHeader, Detail: fmt.Sprintf("it begins with %#04x, want %#04x", v, headerFlags)}
	}
	return nil
}

// Parse reads one message, which must be all of b. Nothing in the result aliases
// b. It is as strict as RFC 3931, sections 5.2 and 7.1: an AVP that is unknown,
// or holds what it may not, is ignored if its M bit is 0 and an error if it is 1;
// what is mandatory must be there, and only lists may repeat an AVP.
//
// A message of Length 12 is an ACK (RFC 3931, section 6.15). The error is an
// [*Error] or an [*UnknownAVPError]; [ResultFor] says what the peer should hear.
func Parse(b []byte) (*Packet, error) {
	if len(b) < headerLen {
		return nil, lengthError("%d octets, a header has %d", len(b), headerLen)
	}
	if err := checkFlags(b); err != nil {
		return nil, err
	}
	if n := int(binary.BigEndian.Uint16(b[2:])); n != len(b) {
		return nil, lengthError("Length %d in a message of %d octets", n, len(b))
	}
	m, err := parseMessage(b[headerLen:])
	if err != nil {
		return nil, err
	}
	return &Packet{
		ConnID:  binary.BigEndian.Uint32(b[4:]),
		Ns:      binary.BigEndian.Uint16(b[8:]),
		Nr:      binary.BigEndian.Uint16(b[10:]),
		Message: m,
	}, nil
}

func parseMessage(b []byte) (Message, error) {
	if len(b) == 0 {
		return &ACK{}, nil
	}
	first, rest, err := splitAVP(b)
	if err != nil {
		return nil, err
	}
	if err := checkMessageType(first); err != nil {
		return nil, at(err, 0, "Message Type")
	}
	number := binary.BigEndian.Uint16(first.value)
	t := typeOf(first.vendor, number)
	if s := specs[t]; s != nil {
		m, err := s.parse(rest)
		return m, at(err, t, "")
	}
	if first.mandatory {
		return nil, &Error{Kind: ErrUnknownMessage, Detail: fmt.Sprintf("number %d of vendor %d", number, first.vendor)}
	}
	for len(rest) > 0 { // not understood, but it must be AVPs
		if _, rest, err = splitAVP(rest); err != nil {
			return nil, err
		}
	}
	return &UnknownMessage{Vendor: first.vendor, Number: number}, nil
}

// checkMessageType says whether a may be the first AVP of a message.
func checkMessageType(a rawAVP) error {
	switch {
	case a.hidden:
		return &Error{Kind: ErrHidden}
	case a.number != numMessageType:
		return &Error{Kind: ErrMissing, Detail: fmt.Sprintf("the first AVP is number %d of vendor %d", a.number, a.vendor)}
	case len(a.value) != 2:
		return lengthError("value of %d octets, want 2", len(a.value))
	}
	return nil
}

// parse reads the AVPs after the Message Type.
func (s *spec) parse(b []byte) (Message, error) {
	m := s.make()
	var seen uint64 // a bit for each of s.fields
	for len(b) > 0 {
		a, rest, err := splitAVP(b)
		if err != nil {
			return nil, err
		}
		b = rest
		if err := s.parseAVP(m, a, &seen); err != nil {
			return nil, err
		}
	}
	for i, f := range s.fields {
		if f.required && seen&(1<<i) == 0 {
			return nil, &Error{Kind: ErrMissing, AVP: f.name}
		}
	}
	if s.check != nil {
		if err := s.check(m); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (s *spec) parseAVP(m Message, a rawAVP, seen *uint64) error {
	if a.hidden || a.vendor == ietf && (a.number == numRandomVector || a.number == numMessageDigest || a.number == numAuthNonce) {
		return &Error{Kind: ErrHidden, Detail: fmt.Sprintf("AVP %d of vendor %d", a.number, a.vendor)}
	}
	i := s.index(a)
	if i < 0 {
		return s.unknownAVP(a)
	}
	f := &s.fields[i]
	if *seen&(1<<i) != 0 && !f.repeats {
		return &Error{Kind: ErrRepeated, Detail: "only one is allowed", AVP: f.name}
	}
	if err := f.parse(m, a.value); err != nil {
		if !a.mandatory && !errors.Is(err, ErrRepeated) { // as if it were not there
			return nil
		}
		return at(err, 0, f.name)
	}
	*seen |= 1 << i
	return nil
}

func (s *spec) unknownAVP(a rawAVP) error {
	if a.number == numMessageType && (a.vendor == ietf || a.vendor == VendorID) {
		return &Error{Kind: ErrRepeated, Detail: "only one is allowed", AVP: "Message Type"}
	}
	if a.mandatory {
		return &UnknownAVPError{Type: s.typ, Vendor: a.vendor, Number: a.number}
	}
	return nil
}

// index finds the field of a, or -1. Tables are short enough to walk.
func (s *spec) index(a rawAVP) int {
	for i := range s.fields {
		if s.fields[i].number == a.number && s.fields[i].vendor == a.vendor {
			return i
		}
	}
	return -1
}
