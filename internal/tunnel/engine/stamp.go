package engine

import (
	"bytes"
	"encoding/hex"
	"fmt"
)

// Stamp is the TAI64N time in a handshake initiation: seconds, then
// nanoseconds, big-endian. A peer accepts only greater ones than before. The
// zero Stamp is none.
type Stamp [12]byte

// Later is the greater of two stamps.
func (s Stamp) Later(t Stamp) Stamp {
	if bytes.Compare(t[:], s[:]) > 0 {
		return t
	}
	return s
}

// MarshalText writes the stamp in hexadecimal, for the journal.
func (s Stamp) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *Stamp) UnmarshalText(b []byte) error {
	if hex.DecodedLen(len(b)) != len(s) {
		return fmt.Errorf("engine: stamp of %d digits", len(b))
	}
	_, err := hex.Decode(s[:], b)
	return err
}
