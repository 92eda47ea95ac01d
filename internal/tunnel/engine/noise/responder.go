package noise

import (
	"encoding/binary"
	"errors"

	"tunneld/internal/secret"
)

// errNotAccepted is a mistake of the caller's.
var errNotAccepted = errors.New("noise: an initiation is accepted before it is answered")

// Initiation is a received initiation on its way through the responder. It
// fits the stack; whoever does not answer it calls Wipe.
type Initiation struct {
	key       *StaticKey
	state     symmetric
	peer      PublicKey
	sender    uint32
	ephemeral [KeySize]byte
	sealed    [StampSize + TagSize]byte
	accepted  bool
}

// ConsumeInitiation does the first half (paper, section 5.4.2): it learns who
// claims to be the sender, at the price of one X25519. The caller has checked
// mac1, and mac2 and the source's rate under load. Errors: ErrMalformed,
// ErrAuth. It may be called from any goroutine.
func (k *StaticKey) ConsumeInitiation(in *Initiation, msg []byte) error {
	if Classify(msg) != KindInitiation {
		return ErrMalformed
	}
	*in = Initiation{key: k, sender: binary.LittleEndian.Uint32(msg[senderAt:])}
	copy(in.ephemeral[:], msg[initEphemeralAt:])
	copy(in.sealed[:], msg[initStampAt:])
	s := &in.state
	s.chain, s.hash = initialChain, k.hash
	s.mixHash(in.ephemeral[:])
	s.mixKey(in.ephemeral[:])

	var product, key [KeySize]byte
	if dh(&product, k.private, in.ephemeral[:]) != nil {
		in.Wipe()
		return ErrAuth
	}
	s.mixKeyTo(&key, product[:])
	clear(product[:])
	static := msg[initStaticAt:initStampAt]
	if err := s.open(in.peer[:], &key, static); err != nil {
		in.Wipe()
		return err
	}
	s.mixHash(static)
	return nil
}

// Peer is the static key the sender claims; Accept proves the claim.
func (in *Initiation) Peer() PublicKey { return in.peer }

// Sender is the index the sender gave it.
func (in *Initiation) Sender() uint32 { return in.sender }

// Accept does the second half with the peer that in.Peer names: the sender
// proves its key, its stamp is above all accepted before, and its last one is
// 20 ms old. Errors: ErrAuth, ErrReplay, ErrFlood; p is unchanged then.
func (in *Initiation) Accept(p *Peer, now Instant) error {
	if in.key == nil || in.peer != p.public {
		return ErrAuth
	}
	shared, err := p.staticShared(in.key)
	if err != nil {
		return ErrAuth
	}
	var key [KeySize]byte
	var stamp Stamp
	s := in.state
	defer s.wipe()
	s.mixKeyTo(&key, shared[:])
	if err := s.open(stamp[:], &key, in.sealed[:]); err != nil {
		return err
	}
	s.mixHash(in.sealed[:])
	if !stamp.After(p.received) {
		return ErrReplay
	}
	if p.acceptedAt != 0 && now.Sub(p.acceptedAt) <= InitiationInterval {
		return ErrFlood
	}
	p.received, p.acceptedAt = stamp, now
	in.state, in.accepted = s, true
	return nil
}

// CreateResponse appends an answer of 92 octets to dst (paper, section 5.4.3)
// and fills keys. index is ours: the peer's packets name it. An empty psk
// stands for "no preshared key". in is wiped in any case. Errors: ErrBadKey for
// a psk of another size.
func (in *Initiation) CreateResponse(dst []byte, p *Peer, index uint32, now Instant, keys *Keys, psk secret.Value) ([]byte, error) {
	defer in.Wipe()
	if !in.accepted || in.peer != p.public {
		return dst, errNotAccepted
	}
	bytes, err := pskBytes(psk)
	if err != nil {
		return dst, err
	}
	defer clear(bytes[:])
	ephemeral, err := generate()
	if err != nil {
		return dst, err
	}
	defer wipeECDH(ephemeral)

	out, msg := grow(dst, ResponseSize)
	binary.LittleEndian.PutUint32(msg, uint32(KindResponse))
	binary.LittleEndian.PutUint32(msg[senderAt:], index)
	binary.LittleEndian.PutUint32(msg[respReceiverAt:], in.sender)
	public := msg[respEphemeralAt:respEmptyAt]
	copy(public, ephemeral.PublicKey().Bytes())
	s := &in.state
	s.mixHash(public)
	s.mixKey(public)
	var product, key [KeySize]byte
	for _, remote := range [...][]byte{in.ephemeral[:], p.public[:]} {
		if err := dh(&product, ephemeral, remote); err != nil {
			return dst, err
		}
		s.mixKey(product[:])
	}
	clear(product[:])
	s.mixPSK(&key, &bytes)
	s.seal(msg[respEmptyAt:respMAC1At], &key, nil)
	p.addMACs(msg, now)

	*keys = Keys{Local: index, Remote: in.sender, Created: now}
	s.split(&keys.Receive, &keys.Send)
	return out, nil
}

// Wipe overwrites the secrets.
func (in *Initiation) Wipe() { *in = Initiation{peer: in.peer, sender: in.sender} }
