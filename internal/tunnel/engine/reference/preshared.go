package reference

import (
	"fmt"
	"time"

	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

// SetPresharedKey sets the preshared key from the next handshake on. What Stats
// says next of the last handshake is read after that.
func (d *Device) SetPresharedKey(id session.ID, psk secret.Value) error {
	key := psk.Reveal()
	switch {
	case len(key) == 0:
		key = make([]byte, engine.KeySize) // WireGuard's way to say none
	case len(key) != engine.KeySize:
		return fmt.Errorf("session %v: preshared key of %d octets: want %d or none", id, len(key), engine.KeySize)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := d.findLocked(id)
	if err != nil {
		return err
	}
	r := newRequest(0)
	r.peer(p.key, true)
	r.key("preshared_key", key)
	d.statusAt = time.Time{}
	return d.applyLocked(r)
}
