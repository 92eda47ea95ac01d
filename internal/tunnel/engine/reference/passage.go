package reference

import (
	"iter"
	"maps"
	"time"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/meter"
)

// SetGate opens or closes a session from the next batch on.
func (d *Device) SetGate(id session.ID, g engine.Gate) error {
	return d.onMeter(id, func(m *meter.Meter) { m.SetGate(g) })
}

// SetDirection says which packets pass the open gate.
func (d *Device) SetDirection(id session.ID, to engine.Direction) error {
	return d.onMeter(id, func(m *meter.Meter) { m.SetDirection(to) })
}

// SetRates bounds what passes in each direction.
func (d *Device) SetRates(id session.ID, rx, tx engine.Rate) error {
	return d.onMeter(id, func(m *meter.Meter) {
		m.SetRate(meter.Rx, rx)
		m.SetRate(meter.Tx, tx)
	})
}

// SetDeadline says when the data path stops the session by itself.
func (d *Device) SetDeadline(id session.ID, at time.Time) error {
	return d.onMeter(id, func(m *meter.Meter) { m.SetDeadline(at) })
}

func (d *Device) onMeter(id session.ID, f func(*meter.Meter)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := d.findLocked(id)
	if err == nil {
		f(&p.meter)
	}
	return err
}

// SetSendFloor changes nothing: wireguard-go takes its stamps from the wall
// clock and tells nobody the last one it accepted.
func (d *Device) SetSendFloor(id session.ID, _ engine.Stamp) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, err := d.findLocked(id)
	return err
}

// Stats reads the counters of one session. What it says of endpoint and
// handshake can be statusLife old.
func (d *Device) Stats(id session.ID) (engine.Stats, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, err := d.findLocked(id)
	if err == nil {
		err = d.refreshLocked()
	}
	if err != nil {
		return engine.Stats{}, err
	}
	return d.statsLocked(p), nil
}

// AllStats reads the counters of every session; wireguard-go is asked once for
// all of them.
func (d *Device) AllStats() iter.Seq2[session.ID, engine.Stats] {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make(map[session.ID]engine.Stats, len(d.sessions))
	if !d.closed && !d.vanished() && d.refreshLocked() == nil {
		for id, p := range d.sessions {
			all[id] = d.statsLocked(p)
		}
	}
	return maps.All(all)
}

func (d *Device) statsLocked(p *peer) (s engine.Stats) {
	p.meter.Read(&s)
	now := d.status[p.key]
	s.Endpoint, s.LastHandshake = now.endpoint, now.lastHandshake
	return s
}
