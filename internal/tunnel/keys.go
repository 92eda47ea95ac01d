package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"

	"tunneld/internal/secret"
)

// keyPair returns the X25519 pair of a private key, or of a fresh one if raw is
// nil.
func keyPair(raw []byte) (private secret.Value, public [32]byte, err error) {
	var key *ecdh.PrivateKey
	if raw == nil {
		key, err = ecdh.X25519().GenerateKey(rand.Reader)
	} else {
		key, err = ecdh.X25519().NewPrivateKey(raw)
	}
	if err != nil {
		return secret.Value{}, public, err
	}
	return secret.OfX25519(key), [32]byte(key.PublicKey().Bytes()), nil
}
