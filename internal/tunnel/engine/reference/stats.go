package reference

import (
	"iter"
	"maps"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

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
