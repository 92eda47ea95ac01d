package native

import (
	"iter"
	"time"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/meter"
	"tunneld/internal/tunnel/engine/noise"
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
	p, err := d.find(id)
	if err == nil {
		f(&p.meter)
	}
	return err
}

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

// Stats reads the counters of one session.
func (d *Device) Stats(id session.ID) (engine.Stats, error) {
	p, err := d.find(id)
	if err != nil {
		return engine.Stats{}, err
	}
	return p.stats(), nil
}

// AllStats reads the counters of every session. The sessions are those of the
// moment when it begins; from then on nothing is locked.
func (d *Device) AllStats() iter.Seq2[session.ID, engine.Stats] {
	return func(yield func(session.ID, engine.Stats) bool) {
		d.mu.RLock()
		peers := make([]*peer, 0, len(d.sessions))
		for _, p := range d.sessions {
			peers = append(peers, p)
		}
		d.mu.RUnlock()
		for _, p := range peers {
			if !yield(p.id, p.stats()) {
				return
			}
		}
	}
}

func (p *peer) stats() (s engine.Stats) {
	p.meter.Read(&s)
	if e := p.endpoint.Load(); e != nil {
		s.Endpoint = e.Dst
	}
	if at := p.lastHandshake.Load(); at != nil {
		s.LastHandshake = *at
	}
	p.mu.Lock()
	s.Accepted, s.Sent = engine.Stamp(p.protocol.LastStamp()), engine.Stamp(p.protocol.SentStamp())
	p.mu.Unlock()
	return s
}
