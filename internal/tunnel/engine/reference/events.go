package reference

import (
	"time"

	"tunneld/internal/tunnel/engine"
)

// wireguard-go tells nobody when a handshake is done or a peer moves, so its
// status is looked at: often for a while when a handshake is under way, and
// seldom otherwise.
const (
	firstLook = 2 * time.Millisecond
	restLook  = time.Second
)

// look has watch look soon.
func (d *Device) look() {
	select {
	case d.looks <- struct{}{}:
	default:
	}
}

// watch tells what happens to the sessions, until the device is closed.
func (d *Device) watch() {
	wait := restLook
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-d.done:
			return
		case <-d.looks:
			wait = firstLook
		case <-timer.C:
			d.tellNews()
			wait = min(2*wait, restLook)
		}
		timer.Reset(wait)
	}
}

// tellNews compares the status of all sessions with what was told before.
func (d *Device) tellNews() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || len(d.sessions) == 0 {
		return
	}
	d.statusAt = time.Time{}
	if d.refreshLocked() != nil {
		return // closed meanwhile
	}
	for _, p := range d.sessions {
		now := d.status[p.key]
		if now.lastHandshake.After(p.told.lastHandshake) {
			d.engine.events.Tell(engine.Event{Kind: engine.HandshakeDone, Session: p.id, At: now.lastHandshake})
		}
		if now.endpoint != p.told.endpoint && now.endpoint.IsValid() {
			d.engine.events.Tell(engine.Event{Kind: engine.EndpointMoved, Session: p.id, At: time.Now(), Endpoint: now.endpoint})
		}
		p.told = now
	}
	d.statusAt = time.Time{} // who asks next may want to know what came of a handshake since
}
