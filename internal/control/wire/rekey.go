package wire

import "crypto/mlkem"

// KeyRequest offers the next key epoch of a session: docs/protocol.md, "Key
// epochs". The node that dials sends it.
type KeyRequest struct {
	LocalID, RemoteID uint32
	KeyEpoch          uint32   // the one offered
	KeyShare          [32]byte // X25519
	EncapsulationKey  []byte   // ML-KEM-768 (FIPS 203)
}

// KeyReply answers a KeyRequest: with the gateway's part of the exchange, when
// its data plane takes the new key already, or with why there is none.
type KeyReply struct {
	LocalID, RemoteID uint32
	KeyEpoch          uint32
	KeyShare          [32]byte // zero when Result says why not
	Ciphertext        []byte   // ML-KEM-768; empty when Result says why not
	Result            *Result  // nil: armed
}

// KeyChanged ends a change of keys: the epoch carries traffic and the one before
// is forgotten, or, with Result, both ends stay with the one before.
type KeyChanged struct {
	LocalID, RemoteID uint32
	KeyEpoch          uint32
	Result            *Result // nil: it carries traffic
}

// Type of each message.
func (*KeyRequest) Type() MessageType { return TypeKeyRequest }
func (*KeyReply) Type() MessageType   { return TypeKeyReply }
func (*KeyChanged) Type() MessageType { return TypeKeyChanged }

var (
	keyRequestSpec = define((*KeyRequest).check,
		must(avpLocalID, func(m *KeyRequest) *uint32 { return &m.LocalID }),
		must(avpRemoteID, func(m *KeyRequest) *uint32 { return &m.RemoteID }),
		must(avpKeyEpoch, func(m *KeyRequest) *uint32 { return &m.KeyEpoch }),
		must(avpKeyShare, func(m *KeyRequest) *[32]byte { return &m.KeyShare }),
		chunked(avpEncapsulation, true, func(m *KeyRequest) *[]byte { return &m.EncapsulationKey }),
	)
	keyReplySpec = define((*KeyReply).check,
		must(avpLocalID, func(m *KeyReply) *uint32 { return &m.LocalID }),
		must(avpRemoteID, func(m *KeyReply) *uint32 { return &m.RemoteID }),
		must(avpKeyEpoch, func(m *KeyReply) *uint32 { return &m.KeyEpoch }),
		may(avpKeyShare, func(m *KeyReply) *[32]byte { return &m.KeyShare }),
		chunked(avpCiphertext, false, func(m *KeyReply) *[]byte { return &m.Ciphertext }),
		result(false, func(m *KeyReply, grow bool) *Result { return grown(&m.Result, grow) }),
	)
	keyChangedSpec = define((*KeyChanged).check,
		must(avpLocalID, func(m *KeyChanged) *uint32 { return &m.LocalID }),
		must(avpRemoteID, func(m *KeyChanged) *uint32 { return &m.RemoteID }),
		must(avpKeyEpoch, func(m *KeyChanged) *uint32 { return &m.KeyEpoch }),
		result(false, func(m *KeyChanged, grow bool) *Result { return grown(&m.Result, grow) }),
	)
)

// grown is *r, made first where it is missing and asked for.
func grown(r **Result, grow bool) *Result {
	if *r == nil && grow {
		*r = new(Result)
	}
	return *r
}

func (m *KeyRequest) check() error {
	if n := len(m.EncapsulationKey); n != mlkem.EncapsulationKeySize768 {
		return rangeError("Encapsulation Key of %d octets, want %d", n, mlkem.EncapsulationKeySize768)
	}
	return nil
}

// check refuses half an exchange.
func (m *KeyReply) check() error {
	n, share := len(m.Ciphertext), m.KeyShare != [32]byte{}
	switch {
	case m.Result != nil && (n > 0 || share):
		return missing("either Key Share and Key Ciphertext or Result Code, not both")
	case m.Result == nil && !share:
		return missing("neither Key Share nor Result Code")
	case m.Result == nil && n != mlkem.CiphertextSize768:
		return rangeError("Key Ciphertext of %d octets, want %d", n, mlkem.CiphertextSize768)
	}
	return checkCode(m.Result)
}

func (m *KeyChanged) check() error { return checkCode(m.Result) }

func checkCode(r *Result) error {
	if r != nil && r.Code == 0 {
		return missing("Cause or Minimum Expires stands without Result Code")
	}
	return nil
}
