package noise

import "encoding/binary"

// PaddedSize is the size of a packet of n octets with its padding: the next
// multiple of 16, but not above mtu unless the packet is longer already. mtu 0
// is no bound.
func PaddedSize(n, mtu int) int {
	padded := (n + PaddingMultiple - 1) &^ (PaddingMultiple - 1)
	if mtu > 0 && padded > mtu {
		padded = max(n, mtu)
	}
	return padded
}

// SealedSize is the size of the message that carries a packet of n octets.
func SealedSize(n, mtu int) int { return TransportHeaderSize + PaddedSize(n, mtu) + TagSize }

// Seal appends a transport message to dst: header, plaintext with padding,
// tag (paper, section 5.4.6). counter comes from NextCounters and is used
// once. plaintext may lie where it will be sealed, at
// dst[len(dst)+TransportHeaderSize:], and must not overlap dst's room
// otherwise. With room for SealedSize in dst nothing is allocated.
func (k *Keypair) Seal(dst []byte, counter uint64, plaintext []byte, mtu int) []byte {
	start, n := len(dst), len(plaintext)
	size := SealedSize(n, mtu)
	if cap(dst)-start < size {
		dst = append(make([]byte, 0, start+size), dst...)
	}
	out := dst[:start+size]
	msg := out[start:]
	body := msg[TransportHeaderSize : size-TagSize]
	if n > 0 && &body[0] != &plaintext[0] {
		copy(body, plaintext)
	}
	clear(body[n:])
	// The nonce is four zero octets and the counter (paper, section 5.4.6). The
	// header holds the counter behind the receiver's index; with that written
	// last, the nonce needs no memory of its own.
	clear(msg[transReceiverAt:transCounterAt])
	binary.LittleEndian.PutUint64(msg[transCounterAt:], counter)
	k.send.Seal(body[:0], msg[transReceiverAt:TransportHeaderSize], body, nil)
	binary.LittleEndian.PutUint32(msg, uint32(KindTransport))
	binary.LittleEndian.PutUint32(msg[transReceiverAt:], k.Remote)
	return out
}

// Open authenticates a transport message for this pair, opens it in place and
// takes its counter, so that it opens once. The result aliases msg, is still
// padded, and is empty for a keepalive. Nothing is allocated. msg is spoilt
// whatever comes out.
//
// Errors: ErrMalformed, ErrExpired, ErrAuth, ErrReplay.
func (k *Keypair) Open(msg []byte, now Instant) ([]byte, error) {
	if Classify(msg) != KindTransport {
		return nil, ErrMalformed
	}
	counter := binary.LittleEndian.Uint64(msg[transCounterAt:])
	if counter >= RejectAfterMessages || !k.MayReceive(now) {
		return nil, ErrExpired
	}
	clear(msg[transReceiverAt:transCounterAt]) // now the nonce, as in Seal
	body := msg[TransportHeaderSize:]
	plaintext, err := k.receive.Open(body[:0], msg[transReceiverAt:TransportHeaderSize], body, nil)
	if err != nil {
		return nil, ErrAuth
	}
	k.mu.Lock()
	fresh := k.window.Accept(counter)
	k.mu.Unlock()
	if !fresh {
		return nil, ErrReplay
	}
	return plaintext, nil
}
