package noise

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// Peer is what handshakes know of one peer as long as its session lives: 152
// octets. Its methods, and those of Handshake and Initiation that take it, are
// for one goroutine at a time.
type Peer struct {
	public PublicKey

	// shared is the product of both static keys, computed at the first
	// handshake, so that adding a session costs no X25519.
	shared     [KeySize]byte
	sharedWith *StaticKey

	received   Stamp   // the last accepted
	sent       Stamp   // our last
	acceptedAt Instant // when received was set

	cookie   [macSize]byte // the peer's, for mac2
	cookieAt Instant       // when it came; zero if never
	mac1     [macSize]byte // of our last handshake message, which a cookie reply names
	awaits   bool          // mac1 was not yet named by one
}

// NewPeer is a peer of that key. A key of low order is found out at the first
// handshake.
func NewPeer(public PublicKey) *Peer { return &Peer{public: public} }

// Public is the peer's key.
func (p *Peer) Public() PublicKey { return p.public }

// LastStamp is the stamp of the last initiation accepted, for the journal and
// for the peer, which may have lost its clock.
func (p *Peer) LastStamp() Stamp { return p.received }

// SentStamp is the stamp of our last initiation, zero before the first.
func (p *Peer) SentStamp() Stamp { return p.sent }

// SetStampFloor makes initiations count only above s. It never lowers what is
// there.
func (p *Peer) SetStampFloor(s Stamp) {
	if s.After(p.received) {
		p.received = s
	}
}

// SetSendFloor makes the next initiation of ours carry a stamp above s, which
// the peer said was the last it accepted. It never lowers what is there.
func (p *Peer) SetSendFloor(s Stamp) {
	if s.After(p.sent) {
		p.sent = s
	}
}

// Wipe overwrites the secrets. The peer may be used again; the stamps stay.
func (p *Peer) Wipe() {
	clear(p.shared[:])
	clear(p.cookie[:])
	p.sharedWith, p.cookieAt, p.awaits = nil, 0, false
}

// staticShared is the product of both static keys.
func (p *Peer) staticShared(k *StaticKey) (*[KeySize]byte, error) {
	if p.sharedWith != k {
		if err := dh(&p.shared, k.private, p.public[:]); err != nil {
			return nil, fmt.Errorf("peer %v: %w", p.public, err)
		}
		p.sharedWith = k
	}
	return &p.shared, nil
}

// addMACs fills the last 32 octets of msg: mac1, and mac2 if the peer gave a
// cookie lately (paper, section 5.4.4).
func (p *Peer) addMACs(msg []byte, now Instant) {
	at := len(msg) - 2*macSize
	key := hash2([]byte(labelMAC1), p.public[:])
	p.mac1 = *newMAC(key[:]).of(msg[:at])
	p.awaits = true
	copy(msg[at:], p.mac1[:])
	if p.cookieAt != 0 && now.Sub(p.cookieAt) < CookieRefreshTime {
		copy(msg[at+macSize:], newMAC(p.cookie[:]).of(msg[:at+macSize])[:])
	}
}

// ConsumeCookieReply takes the cookie out of a reply to our last handshake
// message; the next one carries mac2. It proves nothing about the sender.
// Errors: ErrMalformed, ErrReplay (nothing awaits a reply), ErrAuth.
func (p *Peer) ConsumeCookieReply(msg []byte, now Instant) error {
	if Classify(msg) != KindCookieReply {
		return ErrMalformed
	}
	if !p.awaits {
		return ErrReplay
	}
	key := hash2([]byte(labelCookie), p.public[:])
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		panic(err) // the key has the right size by its type
	}
	cookie, err := aead.Open(nil, msg[cookieNonceAt:cookieSealedAt], msg[cookieSealedAt:], p.mac1[:])
	if err != nil {
		return ErrAuth
	}
	copy(p.cookie[:], cookie)
	p.cookieAt, p.awaits = now, false
	return nil
}

// StampSize is the size of a Stamp in octets.
const StampSize = 12

// Stamp is a TAI64N time as it travels: seconds, then nanoseconds, big-endian.
type Stamp [StampSize]byte

const (
	tai64Base = 1<<62 + 10 // 1970-01-01, with the ten leap seconds before it
	stampTick = 1 << 24    // nanoseconds: coarse, so that a stamp does not show our load
	second    = 1_000_000_000
)

// StampOf is the stamp of a wall-clock time.
func StampOf(t time.Time) (s Stamp) {
	binary.BigEndian.PutUint64(s[:], tai64Base+uint64(t.Unix()))
	binary.BigEndian.PutUint32(s[8:], uint32(t.Nanosecond())&^(stampTick-1))
	return s
}

// After reports whether s is later than r.
func (s Stamp) After(r Stamp) bool { return bytes.Compare(s[:], r[:]) > 0 }

// next is the stamp one tick later; there is none after the last.
func (s Stamp) next() Stamp {
	seconds := binary.BigEndian.Uint64(s[:])
	nanos := uint64(binary.BigEndian.Uint32(s[8:])) + stampTick
	if nanos >= second {
		if seconds+1 == 0 {
			return s
		}
		seconds, nanos = seconds+1, 0
	}
	binary.BigEndian.PutUint64(s[:], seconds)
	binary.BigEndian.PutUint32(s[8:], uint32(nanos))
	return s
}

// nextStamp is the wall clock, or one tick above our last where the clock went
// back: a peer accepts only what is greater than all before.
func (p *Peer) nextStamp(wall time.Time) Stamp {
	s := StampOf(wall)
	if !s.After(p.sent) {
		s = p.sent.next()
	}
	p.sent = s
	return s
}
