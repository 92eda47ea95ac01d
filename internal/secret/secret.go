// Package secret holds values that must not be seen: keys, tickets, passwords.
// It is a leaf that every room may import.
package secret

import (
	"crypto/ecdh"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
)

// Value holds key material. Formatting, logging or marshalling it never shows
// the bytes; Reveal is the one way to them, and easy to grep for. The zero
// Value holds nothing. Copies of a Value share their bytes.
//
// The bytes stand behind a function because fmt does not call Format on an
// unexported field of a struct: it prints what it finds there, following
// pointers for some verbs. Of a function it prints the address.
type Value struct{ held func() *held }

// held is what all copies of a Value share.
type held struct {
	b   []byte
	key atomic.Pointer[ecdh.PrivateKey] // b as crypto/ecdh wants it, once it was used so
}

var errNoKey = errors.New("secret: no private key")

var errMarshalled = errors.New("secret: a secret may not be marshalled; reveal and seal it")

// New returns a Value that holds its own copy of b.
func New(b []byte) Value {
	own := &held{b: append([]byte(nil), b...)}
	return Value{func() *held { return own }}
}

// OfX25519 returns a Value that holds a private key and is ready for
// [Value.X25519].
func OfX25519(key *ecdh.PrivateKey) Value {
	v := New(key.Bytes())
	v.held().key.Store(key)
	return v
}

// Reveal returns the bytes themselves; the caller must not keep or change them.
func (v Value) Reveal() []byte {
	if v.held == nil {
		return nil
	}
	return v.held().b
}

// X25519 agrees with who has the private key of public (RFC 7748, section 6.1); a
// result of all zeroes is an error. The first time it computes the public key of
// v, which crypto/ecdh wants to have and which costs as much as the rest.
func (v Value) X25519(public [32]byte) ([]byte, error) {
	if v.held == nil {
		return nil, errNoKey
	}
	h := v.held()
	key := h.key.Load()
	if key == nil {
		var err error
		if key, err = ecdh.X25519().NewPrivateKey(h.b); err != nil {
			return nil, fmt.Errorf("private key: %w", err)
		}
		h.key.Store(key)
	}
	peer, err := ecdh.X25519().NewPublicKey(public[:])
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return key.ECDH(peer)
}

// IsZero reports whether v holds nothing.
func (v Value) IsZero() bool { return len(v.Reveal()) == 0 }

// Equal compares in constant time.
func (v Value) Equal(w Value) bool { return subtle.ConstantTimeCompare(v.Reveal(), w.Reveal()) == 1 }

// Wipe overwrites the bytes, in every copy of v, and lets go of the key made of
// them.
func (v Value) Wipe() {
	if v.held != nil {
		clear(v.held().b)
		v.held().key.Store(nil)
	}
}

// Format prints "[secret]" for every verb.
func (Value) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// LogValue is "[secret]".
func (Value) LogValue() slog.Value { return slog.StringValue("[secret]") }

// MarshalText always fails: a secret leaves the process sealed or not at all.
func (Value) MarshalText() ([]byte, error) { return nil, errMarshalled }

// GobEncode always fails, as MarshalText does.
func (Value) GobEncode() ([]byte, error) { return nil, errMarshalled }
