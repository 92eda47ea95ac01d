package native

import (
	"time"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/noise"
)

// SetDeadline says when the data path stops the session by itself.
func (d *Device) SetDeadline(id session.ID, at time.Time) error {
	p, err := d.find(id)
	if err == nil {
		p.setDeadline(at)
	}
	return err
}

// setDeadline keeps when the deadline is on CLOCK_BOOTTIME.
func (p *peer) setDeadline(at time.Time) {
	switch left := time.Until(at); {
	case at.IsZero():
		p.ends.Store(0)
	case left <= 0:
		p.ends.Store(1) // long over
	default:
		p.ends.Store(int64(now().Add(left)))
	}
}

// passes reports whether packets may pass at t.
func (p *peer) passes(t noise.Instant) bool {
	ends := p.ends.Load()
	return engine.Gate(p.gate.Load()) == engine.Open && (ends == 0 || int64(t) < ends)
}
