package tunnel

import (
	"errors"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
)

// rebuildRefusedLocked remembers why the gateway does not rebuild the session now,
// and when to ask again. Until then the session is what it was: suspended.
func (t *dialled) rebuildRefusedLocked(res wire.Result) {
	t.lastErr, t.cause = errors.New(res.Describe(wire.TypeCDN)), res.Cause
	t.failures++
	t.retryAt = time.Now().Add(control.Backoff(t.failures))
	t.m.log.Warn("session not rebuilt yet", event.KeyTunnel, t.cfg.Name, event.KeyCause, t.lastErr.Error())
}

// claims are the sessions that the gateway did not rebuild when it was asked, and
// may be asked for again.
func (l *link) claims(sessions []control.Session, wait *time.Duration) (all []control.RebuildSession) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	for _, s := range sessions {
		t := l.labelled(s.Label)
		if !s.Rebuild || t == nil || t.failures == 0 {
			continue
		}
		if left := time.Until(t.retryAt); left > 0 {
			*wait = min(*wait, left)
			continue
		}
		all = append(all, control.RebuildSession{LocalID: s.LocalID})
	}
	return all
}

// upKind is what it is called that a session of the tunnel came up.
func (t *dialled) upKind() event.Kind {
	if t.state == session.Suspended {
		return event.SessionRebuilt
	}
	return event.SessionEstablished
}
