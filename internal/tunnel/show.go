package tunnel

import (
	"context"

	"tunneld/internal/api"
	"tunneld/internal/control"
	"tunneld/internal/event"
	"tunneld/internal/session"
)

// Session shows one session with its story: one that lives, of either half of
// this daemon, or one that is over. A unique beginning of the id will do.
func (m *Manager) Session(ctx context.Context, id string) (api.SessionDetail, error) {
	members, tunnels := m.live(id)
	if len(members)+len(tunnels) > 0 {
		mb, t, err := m.find(id)
		if err != nil {
			return api.SessionDetail{}, err
		}
		if sid, d, ok := m.liveDetail(mb, t); ok {
			d.History = m.history(sid)
			return d, nil
		}
	}
	m.stories.write(ctx) // an end that was told a moment ago
	e, err := m.findEnded(id)
	switch {
	case err != nil:
		return api.SessionDetail{}, failed(err)
	case e != nil:
		return m.endedDetail(e), nil
	}
	_, _, err = m.find(id)
	return api.SessionDetail{}, err
}

// liveDetail is a session that lives in the words of `session show`; not ok: it
// ended meanwhile.
func (m *Manager) liveDetail(mb *member, t *dialled) (id session.ID, d api.SessionDetail, ok bool) {
	if mb != nil {
		m.gateway.mu.Lock()
		defer m.gateway.mu.Unlock()
		st := statsOf(mb.network.dev, mb.id)
		d = api.SessionDetail{
			Session: mb.view(m.gateway), Advertise: notNil(mb.advertise), Checkpoint: mb.conn.standsAt(),
			Limits: mb.limits().view(), RxDropped: dropsView(st.RxDropped), TxDropped: dropsView(st.TxDropped),
		}
		return mb.id, d, m.gateway.members.byID[mb.id] == mb
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.session == nil {
		return id, d, false
	}
	return t.session.ID, t.detail(), true
}

// detail is a dialled session in the words of `session show`; the caller holds
// Manager.mu.
func (t *dialled) detail() api.SessionDetail {
	v, st := t.view(), statsOf(t.dev, t.session.ID)
	return api.SessionDetail{
		Session: api.Session{
			Session: *v.Session, Node: t.m.cfg.Node.Name, Network: t.session.Network, State: v.State, Addresses: v.Addresses,
			Path: v.Path, Endpoint: v.Endpoint, KeyEpoch: v.KeyEpoch, Resumes: v.Resumes, LastHandshakeAt: v.LastHandshakeAt,
			RxBytes: v.RxBytes, TxBytes: v.TxBytes, Since: v.Since, ExpiresAt: v.ExpiresAt,
			LifetimeMillis: v.LifetimeMillis, Refresher: v.Refresher, RefreshAt: v.RefreshAt, Serial: v.Serial,
		},
		Advertise: v.Advertise, Checkpoint: checkpoint(t.link.conn), RxDropped: dropsView(st.RxDropped), TxDropped: dropsView(st.TxDropped),
	}
}

// standsAt is the checkpoint where the connection stands.
func (p *peerConn) standsAt() *uint64 {
	serial := p.checkpoint.Load()
	return &serial
}

// checkpoint is where a connection stands, nil if there is none.
func checkpoint(c *control.Conn) *uint64 {
	if c == nil {
		return nil
	}
	serial := c.View().Serial
	return &serial
}

// history is the story of a session, oldest first.
func (m *Manager) history(id session.ID) []api.Event {
	history := []api.Event{}
	story, err := m.stories.of(id)
	if err != nil {
		m.log.Error("story not read", event.KeySession, id, event.KeyErr, err)
	}
	if story == nil {
		return history
	}
	for _, e := range story.events(id) {
		history = append(history, eventView(e))
	}
	return history
}

// matcher reports whether a session's id begins with id.
func matcher(id string) func(session.ID) bool {
	return func(s session.ID) bool { return len(id) >= 4 && len(id) <= 36 && s.String()[:len(id)] == id }
}

// findEnded looks for a session that is over: at a gateway in the record of
// ends, at a node, which keeps none, among the stories. Nil: there is none.
func (m *Manager) findEnded(id string) (*endedV2, error) {
	if m.gateway != nil {
		if e, err := m.journal.ended(matcher(id)); e != nil || err != nil {
			return e, err
		}
	}
	sid, err := m.journal.findStory(matcher(id))
	if err != nil || sid.IsZero() {
		return nil, err
	}
	story, err := m.stories.of(sid)
	if err != nil || story == nil || story.closed() == nil {
		return nil, err
	}
	last := story.closed()
	e := &endedV2{Session: sid, Node: story.Node, Network: story.Network, EndedAt: last.At, Cause: last.Cause, Resumes: story.resumes(), Request: last.Request}
	if last.Counters != nil {
		e.Counters = countersV1{RxBytes: last.Counters.RxBytes, TxBytes: last.Counters.TxBytes}
	}
	return e, nil
}

// endedDetail is a session that is over in the words of `session show`.
func (m *Manager) endedDetail(e *endedV2) api.SessionDetail {
	d := api.SessionDetail{
		Session: api.Session{
			Session: e.Session.String(), Node: e.Node, Network: e.Network, State: session.Closed.String(), Addresses: notNil(e.Addresses),
			Resumes: e.Resumes, RxBytes: e.Counters.RxBytes, TxBytes: e.Counters.TxBytes, Since: &e.EndedAt,
		},
		Advertise: []prefix{}, History: m.history(e.Session),
	}
	if len(d.History) == 0 { // of a release that kept no stories
		d.History = append(d.History, eventView(event.Event{Time: e.EndedAt, Kind: event.SessionClosed, Session: e.Session, Node: e.Node, Network: e.Network, Cause: e.Cause, Request: e.Request}))
	}
	return d
}
