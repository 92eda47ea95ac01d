package tunnel

import (
	"context"
	"net/netip"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

// reportPause is the least time between two reports of one session to the
// other end or to the record: WEN at most once a minute (RFC 3931, section
// 6.13).
const reportPause = time.Minute

// watchData follows what happens to sessions in the data plane, until ctx ends.
func (m *Manager) watchData(ctx context.Context) {
	events := m.engine.Events()
	for {
		select {
		case <-events.Ready():
			for _, e := range events.Take() {
				m.dataEvent(ctx, e)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (m *Manager) dataEvent(ctx context.Context, e engine.Event) {
	switch e.Kind {
	case engine.HandshakeDone:
		m.mu.Lock()
		if t := m.tunnelOfLocked(e.Session); t != nil {
			t.set(t.state) // wakes who waits
		}
		m.mu.Unlock()
		m.keys.look()
	case engine.NoAnswer:
		m.reportSilence(ctx, e.Session)
	case engine.EndpointMoved:
		m.endpointMoved(e.Session, e.Endpoint)
	}
}

// tunnelOfLocked is the tunnel that has a session, nil if none has.
func (m *Manager) tunnelOfLocked(id session.ID) *dialled {
	for _, t := range m.tunnels {
		if t.session != nil && t.session.ID == id {
			return t
		}
	}
	return nil
}

// reportSilence tells the gateway of a session whose control is up and whose
// data path is not.
func (m *Manager) reportSilence(ctx context.Context, id session.ID) {
	now := time.Now()
	m.mu.Lock()
	t := m.tunnelOfLocked(id)
	if t == nil || t.dev == nil || t.link.conn == nil || t.state != session.Established || now.Sub(t.reported) < reportPause {
		m.mu.Unlock()
		return
	}
	t.reported = now
	m.log.Warn("data path is silent", event.KeyTunnel, t.cfg.Name, event.KeySession, id)
	conn, report := t.link.conn, trouble(t.session.LocalID, statsOf(t.dev, id))
	m.mu.Unlock()
	conn.Do(ctx, report)
}

// trouble is the report of a data path that is silent.
func trouble(local uint32, st engine.Stats) control.ReportTrouble {
	return control.ReportTrouble{LocalID: local, Errors: wire.CircuitErrors{Timeouts: 1}, Statistics: &wire.Statistics{
		RxPackets: st.RxPackets, TxPackets: st.TxPackets, RxBytes: st.RxBytes, TxBytes: st.TxBytes,
	}}
}

// endpointMoved records that a node was heard of at another address than
// before, at most once a minute: it is the node that decides how often it moves.
func (m *Manager) endpointMoved(id session.ID, to netip.AddrPort) {
	g := m.gateway
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	mb := g.members.byID[id]
	if mb == nil {
		return
	}
	now, before := time.Now(), mb.endpoint
	mb.endpoint = to
	if !before.IsValid() || before == to || now.Sub(mb.movedAt) < reportPause {
		return
	}
	mb.movedAt = now
	g.record(mb, event.Event{Kind: event.EndpointMoved, Cause: "from " + before.String() + " to " + to.String()})
}
