package tunnel

import (
	"context"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/tunnel/engine"
)

// tellStamps tells a node that was restarted, or whose gateway was, the stamps
// of its last handshakes that were accepted: if its clock went back meanwhile,
// none of it would be again before the clock has caught up.
func (p *peerConn) tellStamps(ctx context.Context) {
	var tell []control.TellStamp
	p.g.mu.Lock()
	for _, mb := range p.g.members.byConn.list(p) {
		if s := statsOf(mb.network.dev, mb.id).Accepted.Later(mb.base.Accepted); s != (engine.Stamp{}) {
			tell = append(tell, control.TellStamp{LocalID: mb.local, Stamp: wire.Stamp(s)})
		}
	}
	p.g.mu.Unlock()
	for _, t := range tell {
		p.Do(ctx, t)
	}
}

// stampToldLocked has the session's handshakes carry greater stamps, and starts
// one if none was answered yet.
func (t *dialled) stampToldLocked(a control.StampTold) {
	if t.session == nil || t.session.ID != a.Session.ID || t.dev == nil {
		return
	}
	err := t.dev.SetSendFloor(a.Session.ID, engine.Stamp(a.Stamp))
	if err == nil && statsOf(t.dev, a.Session.ID).LastHandshake.IsZero() {
		err = t.dev.Handshake(a.Session.ID, false)
	}
	if err != nil {
		t.m.log.Error("stamp not taken", event.KeyTunnel, t.cfg.Name, event.KeySession, a.Session.ID, event.KeyErr, err)
	}
}
