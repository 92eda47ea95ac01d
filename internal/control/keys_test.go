package control

import (
	"bytes"
	"encoding/hex"
	"testing"

	"tunneld/internal/control/wire"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// TestKeyVectors pins the octets under each key, so that another implementation
// can be held against them (docs/protocol.md, "Keys").
func TestKeyVectors(t *testing.T) {
	fill := func(b byte) (v [32]byte) {
		copy(v[:], bytes.Repeat([]byte{b}, 32))
		return v
	}
	key, binding := fill(1), fill(2)
	b := Binding{OwnID: session.ID{15: 3}, PeerID: session.ID{15: 4}, OwnKey: fill(5), PeerKey: fill(6)}
	mac := resumeMAC(secret.New(key[:]), Initiator, b, binding[:], true, wire.Recovery{LocalID: 7, RemoteID: 8}, session.ID{15: 9},
		wire.Proof{Generation: 10, Attempt: 11}, wire.Cursor{Ns: 12, Nr: 13})
	proof := keyProof(key[:], Responder, binding[:], [2]uint32{14, 15}, fill(16), []byte("about"))
	tests := []struct {
		name string
		got  []byte
		want string
	}{
		{"ratchet", ratchet(secret.New(key[:]), binding[:], 10).Reveal(), vectorRatchet},
		{"resume proof", mac[:], vectorResume},
		{"key proof", proof[:], vectorKeyProof},
	}
	for _, tt := range tests {
		if got := hex.EncodeToString(tt.got); got != tt.want {
			t.Errorf("%s = %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestProverAndVerifierAgree(t *testing.T) {
	p := newPair(t)
	node, gateway := p.binding(p.node, 1), p.binding(p.gateway, 1)
	rec, proof, c := wire.Recovery{LocalID: 1, RemoteID: 2}, wire.Proof{Generation: 3, Attempt: 4}, wire.Cursor{Ns: 5, Nr: 6}
	key := secret.New([]byte("key"))
	made := resumeMAC(key, Initiator, node, []byte("x"), true, rec, nodeBoot, proof, c)
	if checked := resumeMAC(key, Initiator, gateway, []byte("x"), false, rec, nodeBoot, proof, c); made != checked {
		t.Error("the verifier computes another proof than the prover")
	}
	if back := resumeMAC(key, Responder, gateway, []byte("x"), true, rec, nodeBoot, proof, c); made == back {
		t.Error("the proof of one end can be sent back as that of the other")
	}
}

// TestLowOrderKeys: a public key that makes the shared secret zero is refused,
// on both ends (RFC 7748, section 6.1).
func TestLowOrderKeys(t *testing.T) {
	private, _ := newKey(t)
	one := [32]byte{1}
	for _, public := range [][32]byte{{}, one} {
		if shared, err := private.X25519(public); err == nil {
			t.Errorf("X25519(%x) = %x, want an error", public, shared)
		}
	}
	p := newPair(t)
	p.connect()
	p.carry(-1)
	q := p.request(p.gateway, 5)
	q.PublicKey = [32]byte{}
	p.gateway.step(Received{1, &wire.Packet{ConnID: p.gateway.m.rec.LocalID, Ns: p.gateway.m.rec.Nr, Nr: p.gateway.m.rec.Ns, Message: q}})
	if got := p.gateway.trace[len(p.gateway.trace)-1]; got != "send:CDN/2.7@1" {
		t.Errorf("the gateway answers a key of zeroes with %q", got)
	}
	p = newPair(t)
	p.connect()
	p.carry(1)
	p.gateway.out[0].Packet.Message.(*wire.SCCRP).Profile.KeyShare = [32]byte{}
	p.carry(-1)
	p.open()
	if p.node.said("SessionRefused") != 1 {
		t.Errorf("the node opens a session against a key share of zeroes: %v", p.node.notices)
	}
}

// TestKeyProofIsOfItsTransport: a request made on one transport is refused on
// another.
func TestKeyProofIsOfItsTransport(t *testing.T) {
	p := newPair(t)
	p.connect()
	p.carry(-1)
	p.open()
	p.cut() // ICRQ is lost, and sent again with its old proof
	p.connect()
	p.carry(-1)
	if len(p.node.m.Sessions())+len(p.gateway.m.Sessions()) != 0 || p.node.m.Pending()+p.gateway.m.Pending() != 0 {
		t.Errorf("sessions %v and %v", p.node.m.Sessions(), p.gateway.m.Sessions())
	}
	if p.node.said("SessionRefused") != 1 || p.gateway.said("SessionUp") != 0 {
		t.Errorf("notices: node %v, gateway %v", p.node.notices, p.gateway.notices)
	}
	p.open()
	p.carry(-1)
	p.wantUp()
}

// TestPresharedKeys: equal at both ends (wantUp says so), another for each
// session, and the same after a resume.
func TestPresharedKeys(t *testing.T) {
	p := established(t)
	p.open()
	p.carry(-1)
	n := p.node.m.Sessions()
	if n[0].PresharedKey.Equal(n[1].PresharedKey) || !n[1].PresharedKey.Equal(p.gateway.m.Sessions()[1].PresharedKey) {
		t.Error("two sessions have one preshared key, or the ends differ")
	}
	p.cut()
	p.connect()
	p.carry(-1)
	if !p.node.m.Sessions()[0].PresharedKey.Equal(n[0].PresharedKey) {
		t.Error("a resume changed the preshared key")
	}
}

// Computed by another program from what docs/protocol.md says.
const (
	vectorRatchet  = "d51b89ae8eccc6ac8ec913e7eeea7f768cf98f6db6e3f59b3ea12c2e2f832b79"
	vectorResume   = "8f556947e396c2080e7144d71c6d70d67d7c9dec0af9daf7993e4c6db9bbe1d0"
	vectorKeyProof = "551c15cf77590710fbe485b43ceabb5ab06b07d7e41e8c058a4459a9f0b6dc98"
)
