package tunnel

import (
	"time"

	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

// silentAfter is how old the last handshake may be before the data path counts
// as silent: WireGuard refuses keys older than that (Reject-After-Time).
const silentAfter = 180 * time.Second

// alive reports whether the data path of a session is known to work.
func alive(st engine.Stats, now time.Time) bool {
	return !st.LastHandshake.IsZero() && now.Sub(st.LastHandshake) < silentAfter
}

// statsOf reads a session's counters; a session that the data plane does not
// know has none.
func statsOf(d engine.Device, id session.ID) engine.Stats {
	if d == nil {
		return engine.Stats{}
	}
	st, err := d.Stats(id)
	if err != nil {
		return engine.Stats{}
	}
	return st
}

// countersLocked are the inner octets of a session over its whole life.
func (g *gateway) countersLocked(mb *member) countersV1 {
	return mb.base.plus(statsOf(mb.network.dev, mb.id))
}

func (c countersV1) plus(st engine.Stats) countersV1 {
	c.RxBytes += st.RxBytes
	c.TxBytes += st.TxBytes
	c.Accepted, c.Sent = st.Accepted.Later(c.Accepted), st.Sent.Later(c.Sent)
	return c
}

// saveCounters writes what must not be lost with this process; a kill costs
// what was counted since the last time.
func (m *Manager) saveCounters() {
	live := map[session.ID]countersV1{}
	now, wall := bootNow(), time.Now()
	var gone []session.ID
	m.mu.Lock()
	for _, t := range m.tunnels {
		if t.session != nil && t.dev != nil {
			c := t.base.plus(statsOf(t.dev, t.session.ID))
			c.Ages = t.life.Ages(now, wall, hostBoot())
			live[t.session.ID] = c
		}
	}
	gone, m.gone = m.gone, nil
	m.mu.Unlock()
	if g := m.gateway; g != nil {
		g.mu.Lock()
		for _, n := range g.networks {
			for id, st := range n.stats() {
				if mb := g.members.byID[id]; mb != nil {
					c := mb.base.plus(st)
					c.Ages = mb.life.Ages(now, wall, hostBoot())
					live[id] = c
				}
			}
		}
		gone = append(gone, g.gone...)
		g.gone = nil
		g.mu.Unlock()
	}
	if len(live)+len(gone) == 0 {
		return
	}
	if err := m.journal.saveCounters(live, gone); err != nil {
		m.log.Error("counters not saved", event.KeyErr, err)
	}
}

// goneLocked marks a session's counters for removal.
func (m *Manager) goneLocked(id session.ID) { m.gone = append(m.gone, id) }

// event are the counters as an event tells them.
func (c countersV1) event() event.Counters {
	return event.Counters{RxBytes: c.RxBytes, TxBytes: c.TxBytes}
}
