package reference

import (
	"bytes"
	"errors"
	"testing"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
)

// TestPresharedKeyChangesUnderTraffic sets another preshared key at both ends of a
// session in use: packets go on with the keypair that is there, and the next
// handshake succeeds with the new key.
func TestPresharedKeyChangesUnderTraffic(t *testing.T) {
	t.Parallel()
	a, b := memPair(t, loopback(t), loopback(t))
	enginetest.Eventually(t, "packets cross", func() bool { return crosses(a.tun, b.tun, aToB(100)) })
	old, err := a.Stats(a.session.ID)
	if err != nil {
		t.Fatal(err)
	}
	key := secretOf(bytes.Repeat([]byte{7}, engine.KeySize))
	for _, e := range []*memEnd{b, a} { // the responder first
		if err := e.SetPresharedKey(e.session.ID, key); err != nil {
			t.Fatal(err)
		}
		if !arrives(a.tun, b.tun, aToB(100)) || !arrives(b.tun, a.tun, bToA(100)) {
			t.Error("a packet was lost with the change of the key")
		}
	}
	if now, err := a.Stats(a.session.ID); err != nil || !now.LastHandshake.Equal(old.LastHandshake) {
		t.Errorf("Stats = %+v, %v; want the handshake of %v: setting a key starts none", now, err, old.LastHandshake)
	}
	if err := a.Handshake(a.session.ID, false); err != nil {
		t.Fatal(err)
	}
	for _, e := range []*memEnd{a, b} {
		enginetest.Eventually(t, "a handshake with the new key", func() bool {
			if !arrives(a.tun, b.tun, aToB(100)) || !arrives(b.tun, a.tun, bToA(100)) {
				t.Error("a packet was lost")
			}
			now, err := e.Stats(e.session.ID)
			return err == nil && now.LastHandshake.After(old.LastHandshake)
		})
	}
}

func TestPresharedKeyRefused(t *testing.T) {
	a, _ := memPair(t, loopback(t), loopback(t))
	if err := a.SetPresharedKey(a.session.ID, secretOf([]byte("short"))); err == nil {
		t.Error("a preshared key of 5 octets was accepted")
	}
	if err := a.SetPresharedKey(session.NewID(), secretOf(nil)); !errors.Is(err, engine.ErrUnknownSession) {
		t.Errorf("SetPresharedKey of an unknown session = %v, want %v", err, engine.ErrUnknownSession)
	}
	if err := a.SetPresharedKey(a.session.ID, secretOf(nil)); err != nil {
		t.Errorf("SetPresharedKey with none = %v, want nil", err)
	}
}
