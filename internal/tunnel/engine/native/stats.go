package native

import (
	"iter"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

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
