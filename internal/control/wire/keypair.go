package wire

import "encoding/binary"

// A Keypair is a live keypair of the data plane that a gateway which was
// restarted still has: docs/protocol.md, "Resume".
type Keypair struct {
	Session uint32 // the sender's id of it
	Index   uint32 // the receiver index that the peer writes into what it sends with it
}

var avpKeypair = vendor(51, "Kept Keypair", noMBit, fixed(8,
	func(b []byte, k Keypair) []byte {
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, k.Session), k.Index)
	},
	func(b []byte) Keypair { return Keypair{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])} },
).where(func(k Keypair) error {
	if k.Session == 0 || k.Index == 0 {
		return rangeError("keypair %d of session %d, neither may be 0", k.Index, k.Session)
	}
	return nil
}))
