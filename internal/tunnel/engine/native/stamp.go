package native

import (
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/noise"
)

// SetSendFloor has our next initiations carry stamps above s.
func (d *Device) SetSendFloor(id session.ID, s engine.Stamp) error {
	p, err := d.find(id)
	if err == nil {
		p.mu.Lock()
		p.protocol.SetSendFloor(noise.Stamp(s))
		p.mu.Unlock()
	}
	return err
}
