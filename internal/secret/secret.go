// Package secret holds values that must not be seen: keys, tickets, passwords.
// It is a leaf that every room may import.
package secret

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Value holds key material. Formatting, logging or marshalling it never shows
// the bytes; Reveal is the one way to them, and easy to grep for. The zero
// Value holds nothing. Copies of a Value share their bytes.
//
// The bytes stand behind a function because fmt does not call Format on an
// unexported field of a struct: it prints what it finds there, following
// pointers for some verbs. Of a function it prints the address.
type Value struct{ reveal func() []byte }

var errMarshalled = errors.New("secret: a secret may not be marshalled; reveal and seal it")

// New returns a Value that holds its own copy of b.
func New(b []byte) Value {
	own := append([]byte(nil), b...)
	return Value{func() []byte { return own }}
}

// Reveal returns the bytes themselves; the caller must not keep or change them.
func (v Value) Reveal() []byte {
	if v.reveal == nil {
		return nil
	}
	return v.reveal()
}

// IsZero reports whether v holds nothing.
func (v Value) IsZero() bool { return len(v.Reveal()) == 0 }

// Equal compares in constant time.
func (v Value) Equal(w Value) bool { return subtle.ConstantTimeCompare(v.Reveal(), w.Reveal()) == 1 }

// Wipe overwrites the bytes, in every copy of v.
func (v Value) Wipe() { clear(v.Reveal()) }

// Format prints "[secret]" for every verb.
func (Value) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// LogValue is "[secret]".
func (Value) LogValue() slog.Value { return slog.StringValue("[secret]") }

// MarshalText always fails: a secret leaves the process sealed or not at all.
func (Value) MarshalText() ([]byte, error) { return nil, errMarshalled }

// GobEncode always fails, as MarshalText does.
func (Value) GobEncode() ([]byte, error) { return nil, errMarshalled }
