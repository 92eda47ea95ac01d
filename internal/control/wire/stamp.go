package wire

// Stamp is a TAI64N time as the handshakes of the data plane carry it: seconds,
// then nanoseconds, big-endian. Later ones are greater. Zero: none.
type Stamp [12]byte

var avpStamp = vendor(50, "Handshake Stamp", noMBit, fixed(12,
	func(b []byte, s Stamp) []byte { return append(b, s[:]...) },
	func(b []byte) Stamp { return Stamp(b) },
).where(func(s Stamp) error {
	if s == (Stamp{}) {
		return rangeError("a stamp of zero")
	}
	return nil
}))
