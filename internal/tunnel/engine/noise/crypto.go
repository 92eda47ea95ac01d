package noise

import (
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/subtle"
	"hash"
	"reflect"
	"sync"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"

	"tunneld/internal/secret"
)

// Labels of the paper, section 5.4.
const (
	construction = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
	identifier   = "WireGuard v1 zx2c4 Jason@zx2c4.com"
	labelMAC1    = "mac1----"
	labelCookie  = "cookie--"
)

// Every handshake begins with the same chaining key and hash.
var (
	initialChain = blake2s.Sum256([]byte(construction))
	initialHash  = hash2(initialChain[:], []byte(identifier))
)

// zeroNonce serves every sealing inside a handshake: each has a key of its own.
var zeroNonce [chacha20poly1305.NonceSize]byte

// symmetric is Noise's SymmetricState: the chaining key and the hash of all
// that was said so far.
type symmetric struct{ chain, hash [blake2s.Size]byte }

func (s *symmetric) mixHash(data []byte) { s.hash = hash2(s.hash[:], data) }

// mixKey folds input into the chaining key.
func (s *symmetric) mixKey(input []byte) { kdf(input, &s.chain, &s.chain) }

// mixKeyTo folds input into the chaining key and derives a key from it.
func (s *symmetric) mixKeyTo(key *[KeySize]byte, input []byte) { kdf(input, &s.chain, &s.chain, key) }

// mixPSK is Noise's MixKeyAndHash.
func (s *symmetric) mixPSK(key *[KeySize]byte, psk *[KeySize]byte) {
	var tau [blake2s.Size]byte
	kdf(psk[:], &s.chain, &s.chain, &tau, key)
	s.mixHash(tau[:])
	clear(tau[:])
}

// split derives the two transport keys, the initiator's sending key first.
func (s *symmetric) split(first, second *[KeySize]byte) { kdf(nil, &s.chain, first, second) }

func (s *symmetric) wipe() { *s = symmetric{} }

// hash2 is HASH(a || b) for the lengths a handshake has: together at most two
// blocks, so that nothing is allocated.
func hash2(a, b []byte) [blake2s.Size]byte {
	var buf [2 * blake2s.BlockSize]byte
	return blake2s.Sum256(buf[:copy(buf[:], a)+copy(buf[len(a):], b)])
}

// hmac is HMAC-BLAKE2s (RFC 2104) with a key of one hash and a message of at
// most one block. Written out, it allocates nothing; crypto/hmac makes two
// hashes for each of the dozens of calls in a handshake.
func hmac(out, key *[blake2s.Size]byte, message []byte) {
	var inner, outer [2 * blake2s.BlockSize]byte
	for i := range blake2s.BlockSize {
		inner[i], outer[i] = 0x36, 0x5c
	}
	subtle.XORBytes(inner[:], inner[:], key[:])
	subtle.XORBytes(outer[:], outer[:], key[:])
	n := blake2s.BlockSize + copy(inner[blake2s.BlockSize:], message)
	sum := blake2s.Sum256(inner[:n])
	n = blake2s.BlockSize + copy(outer[blake2s.BlockSize:], sum[:])
	*out = blake2s.Sum256(outer[:n])
	clear(inner[:])
	clear(outer[:])
}

// kdf is HKDF (RFC 5869) over HMAC-BLAKE2s: input keyed with *chain gives as
// many outputs as asked for. chain may be one of them.
func kdf(input []byte, chain *[blake2s.Size]byte, outs ...*[blake2s.Size]byte) {
	var prk [blake2s.Size]byte
	hmac(&prk, chain, input)
	var message [blake2s.Size + 1]byte
	n := 0
	for i, out := range outs {
		message[n] = byte(i + 1)
		hmac(out, &prk, message[:n+1])
		n = copy(message[:], out[:])
	}
	clear(prk[:])
	clear(message[:])
}

// generate makes a one-time key; a variable so that the golden vectors can fix it.
var generate = func() (*ecdh.PrivateKey, error) { return ecdh.X25519().GenerateKey(rand.Reader) }

// dh is X25519. A parsed private key keeps its public key, which the functions
// of x/crypto compute again at every call, at the price of the product itself.
// The error is ErrBadKey for a public key of low order.
func dh(out *[KeySize]byte, private *ecdh.PrivateKey, public []byte) error {
	remote, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return ErrBadKey
	}
	shared, err := private.ECDH(remote)
	if err != nil {
		return ErrBadKey
	}
	copy(out[:], shared)
	clear(shared)
	return nil
}

// wipeECDH overwrites the scalar of a private key, for which crypto/ecdh has no
// method. If a later Go keeps it elsewhere, a test says so.
func wipeECDH(k *ecdh.PrivateKey) {
	if k == nil {
		return
	}
	if f := reflect.ValueOf(k).Elem().FieldByName("privateKey"); f.IsValid() && f.Kind() == reflect.Slice {
		clear(f.Bytes())
	}
}

// seal appends plaintext sealed under a key that serves this once, with the
// transcript as associated data, and goes on with what it wrote.
func (s *symmetric) seal(dst []byte, key *[KeySize]byte, plaintext []byte) {
	aead := newAEAD(key)
	aead.Seal(dst[:0], zeroNonce[:], plaintext, s.hash[:])
	clear(key[:])
}

// open is the reverse of seal; it changes nothing when it fails.
func (s *symmetric) open(dst []byte, key *[KeySize]byte, sealed []byte) error {
	aead := newAEAD(key)
	_, err := aead.Open(dst[:0], zeroNonce[:], sealed, s.hash[:])
	clear(key[:])
	if err != nil {
		return ErrAuth
	}
	return nil
}

func newAEAD(key *[KeySize]byte) cipher.AEAD {
	aead, err := chacha20poly1305.New(key[:])
	if err != nil {
		panic(err) // the key has the right size by its type
	}
	return aead
}

// pskBytes is a preshared key as an array; none at all is all zero (paper,
// section 5.2).
func pskBytes(v secret.Value) (psk [KeySize]byte, err error) {
	b := v.Reveal()
	if len(b) != 0 && len(b) != KeySize {
		return psk, ErrBadKey
	}
	copy(psk[:], b)
	return psk, nil
}

// mac is keyed BLAKE2s with 128 bits of output. x/crypto has no form of it that
// does not allocate, so hashes that have a fixed key are kept in pools.
type mac struct {
	hash hash.Hash
	sum  [macSize]byte
}

func newMAC(key []byte) *mac {
	h, err := blake2s.New128(key)
	if err != nil {
		panic(err) // keys are 16 or 32 octets by construction
	}
	return &mac{hash: h}
}

func (m *mac) of(data []byte) *[macSize]byte {
	m.hash.Reset()
	m.hash.Write(data)
	m.hash.Sum(m.sum[:0])
	return &m.sum
}

// equal compares the MAC of data with want in constant time.
func (m *mac) equal(data, want []byte) bool {
	return subtle.ConstantTimeCompare(m.of(data)[:], want) == 1
}

// macPool hands out MACs of one key to any goroutine.
type macPool struct{ sync.Pool }

func (p *macPool) init(key []byte) { p.New = func() any { return newMAC(key) } }

func (p *macPool) equal(data, want []byte) bool {
	m := p.Get().(*mac)
	defer p.Put(m)
	return m.equal(data, want)
}
