package control

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"

	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// Labels of what is derived from a transport (docs/protocol.md, "Keys").
const (
	labelResume  = "EXPORTER-tunneld-resume"  // the first resume key
	labelBinding = "EXPORTER-tunneld-binding" // what proofs are bound to
	labelPSK     = "EXPORTER-tunneld-psk"     // PSK(0) of a session
)

const keySize = 32

// ratchet gives the resume key after key, which was used on a transport with
// this binding value: a stolen copy of key is worth nothing once it was used.
func ratchet(key secret.Value, binding []byte, generation uint64) secret.Value {
	info := binary.BigEndian.AppendUint64([]byte("tunneld resume key "), generation)
	next, err := hkdf.Key(sha256.New, key.Reveal(), binding, string(info), keySize)
	if err != nil {
		panic(err) // only a length out of range fails
	}
	return secret.New(next)
}

// resumeMAC is the proof of a resume: docs/protocol.md, "Resume". It covers who
// proves it to whom, in which role, on which transport, for which connection
// and how far the prover has got.
func resumeMAC(key secret.Value, role Role, b Binding, binding []byte, proverIsSelf bool, rec wire.Recovery, epoch session.ID, p wire.Proof, c wire.Cursor) [32]byte {
	prover, verifier, proverKey, verifierKey := b.OwnID, b.PeerID, b.OwnKey, b.PeerKey
	if !proverIsSelf {
		prover, verifier, proverKey, verifierKey = verifier, prover, verifierKey, proverKey
	}
	h := hmac.New(sha256.New, key.Reveal())
	h.Write([]byte("tunneld resume 1"))
	h.Write([]byte{byte(role)})
	h.Write(prover[:])
	h.Write(verifier[:])
	h.Write(proverKey[:])
	h.Write(verifierKey[:])
	h.Write(binding)
	h.Write(epoch[:])
	var n [28]byte
	binary.BigEndian.PutUint32(n[0:], rec.LocalID)
	binary.BigEndian.PutUint32(n[4:], rec.RemoteID)
	binary.BigEndian.PutUint64(n[8:], p.Generation)
	binary.BigEndian.PutUint64(n[16:], p.Attempt)
	binary.BigEndian.PutUint16(n[24:], c.Ns)
	binary.BigEndian.PutUint16(n[26:], c.Nr)
	h.Write(n[:])
	return [32]byte(h.Sum(nil))
}

// keyProof shows that the prover holds the private key of public: it is keyed
// with X25519 of that key and the verifier's key share of this transport. ids
// are the session ids as the initiator sees them, the second 0 in an ICRQ;
// about names what else the key is for.
func keyProof(shared []byte, role Role, binding []byte, ids [2]uint32, public [32]byte, about []byte) [32]byte {
	h := hmac.New(sha256.New, shared)
	h.Write([]byte("tunneld session key 1"))
	h.Write([]byte{byte(role)})
	h.Write(binding)
	h.Write(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, ids[0]), ids[1]))
	h.Write(public[:])
	h.Write(about)
	return [32]byte(h.Sum(nil))
}

// presharedKey is PSK(0) of a session, or that of the epoch in which it is
// rebuilt, from the transport that carried its ICRQ and ICRP.
func presharedKey(b Binding, id session.ID, node, gateway [32]byte, epoch uint32) (secret.Value, error) {
	context := []byte("node gateway ")
	if epoch > 0 {
		context = binary.BigEndian.AppendUint32([]byte("node gateway rebuilt "), epoch)
	}
	context = append(context, id[:]...)
	context = append(append(context, node[:]...), gateway[:]...)
	k, err := b.Export(labelPSK, context, keySize)
	if err != nil {
		return secret.Value{}, err
	}
	return secret.New(k), nil
}
