package native

import (
	"fmt"

	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/noise"
)

// SetPresharedKey sets the preshared key from the next handshake on.
func (d *Device) SetPresharedKey(id session.ID, psk secret.Value) error {
	if n := len(psk.Reveal()); n != 0 && n != engine.KeySize {
		return fmt.Errorf("session %v: preshared key of %d octets: want %d or none", id, n, engine.KeySize)
	}
	p, err := d.find(id)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armLocked(secret.New(psk.Reveal()), now())
	return nil
}

// armLocked sets the preshared key. It enters where the responder builds its
// answer, and the two ends cannot change it at one moment: so where we start
// the handshakes, answers under the key before it are taken, too, until one
// came under the new one or a handshake's tries are over.
func (p *peer) armLocked(psk secret.Value, t noise.Instant) {
	if p.psk.Equal(psk) {
		return
	}
	p.formerPSK.Wipe()
	p.formerPSK, p.psk, p.formerUntil = p.psk, psk, t.Add(noise.RekeyAttemptTime)
}

// presharedLocked is the keys that an answer may have been made with.
func (p *peer) presharedLocked(t noise.Instant) []secret.Value {
	if p.responder || t >= p.formerUntil {
		return []secret.Value{p.psk}
	}
	return []secret.Value{p.psk, p.formerPSK}
}

// forgetPresharedLocked forgets the former key, because the peer has the new one.
func (p *peer) forgetPresharedLocked() {
	p.formerPSK.Wipe()
	p.formerPSK, p.formerUntil = secret.Value{}, 0
}
