package noise

import "encoding/binary"

// Kind tells the four messages apart (paper, section 5.4).
type Kind uint8

// A datagram that is none of the four is KindInvalid. The values are those of
// the first octet on the wire.
const (
	KindInvalid Kind = iota
	KindInitiation
	KindResponse
	KindCookieReply
	KindTransport
)

// Places of fields in the handshake messages. All integers are little-endian.
const (
	senderAt = 4 // initiation and response

	initEphemeralAt = 8
	initStaticAt    = initEphemeralAt + KeySize
	initStampAt     = initStaticAt + KeySize + TagSize
	initMAC1At      = initStampAt + StampSize + TagSize

	respReceiverAt  = 8
	respEphemeralAt = 12
	respEmptyAt     = respEphemeralAt + KeySize
	respMAC1At      = respEmptyAt + TagSize

	cookieReceiverAt = 4
	cookieNonceAt    = 8
	cookieSealedAt   = cookieNonceAt + cookieNonceSize
	cookieNonceSize  = 24 // of XChaCha20-Poly1305

	transReceiverAt = 4
	transCounterAt  = 8

	macSize = 16
)

// Classify looks at the first octet, the three reserved octets, which are
// zero, and the length; at nothing else.
func Classify(b []byte) Kind {
	if len(b) < KeepaliveSize {
		return KindInvalid
	}
	switch binary.LittleEndian.Uint32(b) {
	case uint32(KindInitiation):
		if len(b) == InitiationSize {
			return KindInitiation
		}
	case uint32(KindResponse):
		if len(b) == ResponseSize {
			return KindResponse
		}
	case uint32(KindCookieReply):
		if len(b) == CookieReplySize {
			return KindCookieReply
		}
	case uint32(KindTransport):
		return KindTransport
	}
	return KindInvalid
}

// Receiver is the index a message of kind response, cookie reply or transport
// is for; of any other datagram it is 0.
func Receiver(b []byte) uint32 {
	switch Classify(b) {
	case KindResponse:
		return binary.LittleEndian.Uint32(b[respReceiverAt:])
	case KindCookieReply:
		return binary.LittleEndian.Uint32(b[cookieReceiverAt:])
	case KindTransport:
		return binary.LittleEndian.Uint32(b[transReceiverAt:])
	}
	return 0
}

// grow appends n zero octets to dst and returns all of it and the new part.
func grow(dst []byte, n int) (all, tail []byte) {
	start := len(dst)
	if cap(dst)-start >= n {
		all = dst[:start+n]
		clear(all[start:])
	} else {
		all = append(dst, make([]byte, n)...)
	}
	return all, all[start:]
}
