package noise

import (
	"bytes"
	"crypto/ecdh"
	"encoding/base64"

	"golang.org/x/crypto/blake2s"

	"tunneld/internal/secret"
)

// PublicKey is an X25519 public key.
type PublicKey [KeySize]byte

// String is the key in base64, as `wg` prints it.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// StaticKey is a long-term key of ours, with everything computed from it that
// does not depend on a peer. It is read only and serves any goroutine.
type StaticKey struct {
	private   *ecdh.PrivateKey
	public    PublicKey
	hash      [blake2s.Size]byte // of a transcript up to and with our public key
	cookieKey [KeySize]byte      // seals the cookies we give out
	mac1      macPool            // checks messages made for us
}

// NewStaticKey parses a private key of 32 octets. The error is ErrBadKey.
func NewStaticKey(private secret.Value) (*StaticKey, error) {
	parsed, err := ecdh.X25519().NewPrivateKey(private.Reveal())
	if err != nil {
		return nil, ErrBadKey
	}
	k := &StaticKey{private: parsed, public: PublicKey(parsed.PublicKey().Bytes())}
	k.hash = hash2(initialHash[:], k.public[:])
	k.cookieKey = hash2([]byte(labelCookie), k.public[:])
	mac1Key := hash2([]byte(labelMAC1), k.public[:])
	k.mac1.init(mac1Key[:])
	return k, nil
}

// Public is the public half.
func (k *StaticKey) Public() PublicKey { return k.public }

// CheckMAC1 reports whether msg is an initiation or a response made by somebody
// who knows our public key. It is what tells the networks of one socket apart,
// and comes before anything that costs more (paper, section 5.3). It allocates
// nothing and may be called while packets wait.
func (k *StaticKey) CheckMAC1(msg []byte) bool {
	switch Classify(msg) {
	case KindInitiation, KindResponse:
		at := len(msg) - 2*macSize
		return k.mac1.equal(msg[:at], msg[at:at+macSize])
	}
	return false
}

// Wins says whose handshake counts when both ends started one at once: ours,
// if our public key is the greater. Both ends come to the same answer.
func (k *StaticKey) Wins(peer PublicKey) bool { return bytes.Compare(k.public[:], peer[:]) > 0 }

// Wipe overwrites the private key. Nobody may use k any more.
func (k *StaticKey) Wipe() { wipeECDH(k.private) }
