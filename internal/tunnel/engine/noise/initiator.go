package noise

import (
	"crypto/ecdh"
	"encoding/binary"
	"time"

	"tunneld/internal/secret"
)

// Handshake is an initiation of ours in flight: it exists from
// [StaticKey.CreateInitiation] until an answer came, another initiation took
// its place, or attempts ended. Whoever drops it calls Wipe.
type Handshake struct {
	state     symmetric
	ephemeral *ecdh.PrivateKey
	index     uint32
	created   Instant
}

// CreateInitiation appends an initiation of 148 octets to dst (paper, section
// 5.4.2). index is ours: the answer names it. wall serves the TAI64N stamp and
// nothing else. The error is ErrBadKey for a peer key of low order.
func (k *StaticKey) CreateInitiation(dst []byte, p *Peer, index uint32, now Instant, wall time.Time) ([]byte, *Handshake, error) {
	shared, err := p.staticShared(k)
	if err != nil {
		return dst, nil, err
	}
	ephemeral, err := generate()
	if err != nil {
		return dst, nil, err
	}
	h := &Handshake{ephemeral: ephemeral, index: index, created: now}
	s := &h.state
	s.chain, s.hash = initialChain, hash2(initialHash[:], p.public[:])

	out, msg := grow(dst, InitiationSize)
	binary.LittleEndian.PutUint32(msg, uint32(KindInitiation))
	binary.LittleEndian.PutUint32(msg[senderAt:], index)
	public := msg[initEphemeralAt:initStaticAt]
	copy(public, ephemeral.PublicKey().Bytes())
	s.mixKey(public)
	s.mixHash(public)

	var product, key [KeySize]byte
	if err := dh(&product, ephemeral, p.public[:]); err != nil {
		h.Wipe()
		return dst, nil, err
	}
	s.mixKeyTo(&key, product[:])
	clear(product[:])
	static := msg[initStaticAt:initStampAt]
	s.seal(static, &key, k.public[:])
	s.mixHash(static)

	s.mixKeyTo(&key, shared[:])
	stamp := p.nextStamp(wall)
	sealed := msg[initStampAt:initMAC1At]
	s.seal(sealed, &key, stamp[:])
	s.mixHash(sealed)
	p.addMACs(msg, now)
	return out, h, nil
}

// Index is the index we gave it.
func (h *Handshake) Index() uint32 { return h.index }

// Created is when it was made.
func (h *Handshake) Created() Instant { return h.created }

// ConsumeResponse takes the answer (paper, section 5.4.3) and fills keys. The
// caller has checked mac1 and found h by the message's index.
//
// The preshared key enters where the responder builds its answer, so only this
// end can try several: psks are tried in order, and used is the place of the
// one that fitted. None at all, or an empty one, stands for "no preshared key".
//
// Errors: ErrMalformed, ErrAuth, ErrBadKey (a preshared key of another size).
// After an error h is unchanged and may see another answer; afterwards it is
// wiped.
func (h *Handshake) ConsumeResponse(k *StaticKey, msg []byte, now Instant, keys *Keys, psks ...secret.Value) (used int, err error) {
	if Classify(msg) != KindResponse || h.ephemeral == nil || Receiver(msg) != h.index {
		return 0, ErrMalformed
	}
	s := h.state
	defer s.wipe()
	public := msg[respEphemeralAt:respEmptyAt]
	s.mixHash(public)
	s.mixKey(public)
	var product [KeySize]byte
	for _, private := range [...]*ecdh.PrivateKey{h.ephemeral, k.private} {
		if dh(&product, private, public) != nil {
			return 0, ErrAuth
		}
		s.mixKey(product[:])
	}
	clear(product[:])

	if len(psks) == 0 {
		psks = []secret.Value{{}}
	}
	for i, psk := range psks {
		t := s
		if err = t.openEmpty(psk, msg[respEmptyAt:respMAC1At]); err == nil {
			*keys = Keys{Local: h.index, Remote: binary.LittleEndian.Uint32(msg[senderAt:]), Created: now, Initiator: true}
			t.split(&keys.Send, &keys.Receive)
			t.wipe()
			h.Wipe()
			return i, nil
		}
		t.wipe()
	}
	return 0, err
}

// openEmpty mixes psk in and checks the tag that ends the transcript.
func (s *symmetric) openEmpty(psk secret.Value, tag []byte) error {
	bytes, err := pskBytes(psk)
	if err != nil {
		return err
	}
	var key [KeySize]byte
	s.mixPSK(&key, &bytes)
	clear(bytes[:])
	if err := s.open(nil, &key, tag); err != nil {
		return err
	}
	s.mixHash(tag)
	return nil
}

// Wipe overwrites the secrets.
func (h *Handshake) Wipe() {
	h.state.wipe()
	wipeECDH(h.ephemeral)
	h.ephemeral = nil
}
