// Package session names sessions: the identifier that follows one from its
// birth to its record, and the words for the states it passes through. It is a
// leaf that every room may import.
package session

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
)

// ID is a session UUID (RFC 9562, section 5.4): 128 bits, chosen by the
// gateway after authentication, never reused. It is the correlation id in
// every log line, event and answer. It is not a credential.
//
// The same form names deployments, nodes and boots of a daemon, which is why
// it has no word of sessions in it.
type ID [16]byte

// NewID returns a fresh random ID.
func NewID() ID {
	id, err := ReadID(rand.Reader)
	if err != nil {
		panic(err) // crypto/rand never fails
	}
	return id
}

// ReadID makes an ID from 16 octets of r, for callers whose randomness must be
// repeatable.
func ReadID(r io.Reader) (ID, error) {
	var id ID
	if _, err := io.ReadFull(r, id[:]); err != nil {
		return ID{}, fmt.Errorf("random id: %w", err)
	}
	id[6] = id[6]&0x0f | 0x40 // version 4
	id[8] = id[8]&0x3f | 0x80 // variant of RFC 9562, section 4.1
	return id, nil
}

// ParseID reads the form that String writes.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return ID{}, fmt.Errorf("%q is no UUID: want 8-4-4-4-12 hexadecimal digits", s)
	}
	digits := s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:]
	if _, err := hex.Decode(id[:], []byte(digits)); err != nil {
		return ID{}, fmt.Errorf("%q is no UUID: %w", s, err)
	}
	return id, nil
}

// IsZero reports whether id names nothing.
func (id ID) IsZero() bool { return id == ID{} }

// String writes id as 8-4-4-4-12 lower-case hexadecimal digits.
func (id ID) String() string {
	var b [36]byte
	hex.Encode(b[:8], id[:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:], id[10:])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// MarshalText writes id as String does.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (id *ID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseID(string(b))
	return err
}

// State is what a control connection or a session is doing. The names are
// those of RFC 3931, sections 7.2 and 7.3, with two of our own: suspended
// (transport lost, everything kept) and closed (over, for good).
type State uint8

// A control connection uses Idle, WaitCtlReply, WaitCtlConn, Established,
// Suspended and Closed; a session the others and the last three.
const (
	Idle State = iota
	WaitCtlReply
	WaitCtlConn
	WaitReply
	WaitConnect
	Established
	Suspended
	Closed
	numStates
)

var stateNames = [numStates]string{
	"idle", "wait-ctl-reply", "wait-ctl-conn", "wait-reply", "wait-connect", "established", "suspended", "closed",
}

// String prints the state as RFC 3931 writes it.
func (s State) String() string {
	if s < numStates {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// MarshalText writes the state as String does.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *State) UnmarshalText(b []byte) error {
	for i, name := range stateNames {
		if name == string(b) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("no state is named %q", b)
}
