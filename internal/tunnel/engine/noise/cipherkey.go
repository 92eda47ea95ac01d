package noise

import (
	"crypto/cipher"
	"reflect"
	"unsafe"
)

// cipherKey is ChaCha20-Poly1305 over a key that lies in memory of ours.
type cipherKey struct {
	cipher.AEAD
	key *[KeySize]byte
}

// overKey makes the cipher read its key where it lies, so that wiping that
// place wipes the key. x/crypto's cipher is one pointer to a struct that holds
// the 32 octets and nothing else; there is no other way to have it without a
// copy on the heap that nobody can clear. If its form should change, the cipher
// keeps a copy of its own, and a test says so.
func overKey(key *[KeySize]byte) cipherKey {
	aead := newAEAD(key)
	if t := reflect.TypeOf(aead); t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct && t.Elem().Size() == KeySize {
		words := (*[2]unsafe.Pointer)(unsafe.Pointer(&aead)) // type and pointer
		clear((*[KeySize]byte)(words[1])[:])
		words[1] = unsafe.Pointer(key)
	}
	return cipherKey{aead, key}
}
