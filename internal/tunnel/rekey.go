package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/secret"
	"tunneld/internal/session"
)

// KeyOptions say when keys are changed; what is zero has its default. The
// configuration says how often; the rest is for tests.
type KeyOptions struct {
	Confirm time.Duration // how long an armed data key may wait for a handshake; 90 s
	Volume  int64         // octets of control messages, both directions, after which the connection is dialled anew; 64 MiB
}

// How often keys are changed where the configuration says nothing.
const (
	defaultRekey  = time.Hour
	defaultRedial = time.Hour
)

const (
	// youngKey bounds the age of the keypair in use when a change begins: if
	// no handshake succeeds with the new key there is time to go back before
	// the keypair dies, 180 s old.
	youngKey = 60 * time.Second
	// A gateway whose node was not heard of with either key for turnAfter,
	// when it was to start a handshake after 120 s, answers with the one and
	// the other in turns of keyTurn: two handshakes of WireGuard, 5 s apart,
	// fall into each.
	turnAfter = 122 * time.Second
	keyTurn   = 11 * time.Second

	keyRetry    = time.Minute            // after a change that did not come about
	keyWatch    = 5 * time.Second        // between looks where nothing is due
	keyWatchDue = time.Second            // where a change waits for its moment
	keyConfirm  = 100 * time.Millisecond // at least
)

// keyPolicy is how often keys are changed. wake makes the watch look at once.
type keyPolicy struct {
	data, control, confirm time.Duration
	volume                 int64
	wake                   chan struct{} // of length 1
}

func newKeyPolicy(o Options) keyPolicy {
	return keyPolicy{
		data: cmp.Or(o.Config.Data.Rekey, defaultRekey), control: cmp.Or(o.Config.Data.Redial, defaultRedial),
		confirm: cmp.Or(o.Keys.Confirm, 90*time.Second), volume: cmp.Or(o.Keys.Volume, 64<<20),
		wake: make(chan struct{}, 1),
	}
}

// look makes the watch look at once.
func (p *keyPolicy) look() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// after is when the next change is due, a period from now less up to a tenth, so
// that the nodes of a gateway do not change in step.
func after(now time.Time, period time.Duration) time.Time {
	return now.Add(period - mrand.N(period/10+1))
}

// nodeKeys is the change of keys of a dialled session. Manager.mu guards it.
type nodeKeys struct {
	due      time.Time // of the next change; zero: not thought of yet
	armedAt  time.Time // zero: no key is armed
	confirm  time.Time // not later
	lastSeen time.Time // the last handshake when the key was armed
}

// gatewayKeys is the change of keys of a gateway's session. gateway.mu guards it.
type gatewayKeys struct {
	old, next secret.Value
	turnedAt  time.Time
}

// watchKeys begins changes of keys, follows those that are open and dials control
// connections anew, until ctx ends.
func (m *Manager) watchKeys(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-m.keys.wake:
		case <-ctx.Done():
			return
		}
		timer.Reset(m.lookAtKeys(ctx, time.Now()))
	}
}

// lookAtKeys does what is due and says when there may be more.
func (m *Manager) lookAtKeys(ctx context.Context, now time.Time) time.Duration {
	wait := keyWatch
	type event struct {
		conn *control.Conn
		ev   control.Event
	}
	var events []event
	m.mu.Lock()
	for _, l := range m.links {
		l.renewTransportLocked(now, &wait)
	}
	for _, t := range m.tunnels {
		for _, ev := range t.lookAtKeyLocked(now, &wait) {
			events = append(events, event{t.link.conn, ev})
		}
	}
	m.mu.Unlock()
	for _, e := range events {
		e.conn.Do(ctx, e.ev)
	}
	if m.gateway != nil {
		m.gateway.turnKeys(now)
	}
	return wait
}

// renewTransportLocked dials a transport beside the living one when that has
// served for long enough or carried enough: TLS 1.3 gives each one fresh keys.
// The old one goes when the new one has taken over; a dial that fails leaves it.
func (l *link) renewTransportLocked(now time.Time, wait *time.Duration) {
	if !l.up || l.conn == nil {
		return
	}
	p := &l.m.keys
	if l.renewAt.IsZero() {
		l.renewAt = after(now, p.control)
	}
	if now.Before(l.renewAt) && l.octets.Load() < p.volume {
		*wait = min(*wait, max(l.renewAt.Sub(now), keyConfirm))
		return
	}
	// The gateway takes a newer one for the last try of a node whose present one
	// is half dead, and gives that up, words of ours on it that it has not read
	// included.
	if !l.conn.View().InUse {
		*wait = min(*wait, keyConfirm)
		return
	}
	l.renewAt = now.Add(min(keyRetry, p.control)) // unless it succeeds
	l.octets.Store(0)
	l.redial = true
	l.nudge()
}

// renewedTransportLocked counts age and volume from here on.
func (l *link) renewedTransportLocked() {
	l.renewAt = time.Time{}
	l.octets.Store(0)
	l.m.keys.look()
}

// counted counts what a transport carries.
type counted struct {
	net.Conn
	octets *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.octets.Add(int64(n))
	return n, err
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.octets.Add(int64(n))
	return n, err
}

// lookAtKeyLocked says what a session's control connection must be told now.
func (t *dialled) lookAtKeyLocked(now time.Time, wait *time.Duration) []control.Event {
	if t.session == nil || t.dev == nil || t.link.conn == nil {
		return nil
	}
	if !t.session.NextPresharedKey.IsZero() {
		events := t.lookAtArmedLocked(now) // and again when the handshake is done
		*wait = min(*wait, max(t.keys.confirm.Sub(now), keyConfirm))
		return events
	}
	if t.keys.due.IsZero() {
		t.keys.due = after(now, t.m.keys.data)
	}
	if t.state != session.Established || !t.link.up {
		return nil
	}
	if now.Before(t.keys.due) {
		*wait = min(*wait, t.keys.due.Sub(now))
		return nil
	}
	if now.Sub(statsOf(t.dev, t.session.ID).LastHandshake) > youngKey {
		*wait = min(*wait, keyWatchDue)
		return nil
	}
	t.keys.due = now.Add(min(keyRetry, t.m.keys.data)) // unless it succeeds
	return []control.Event{control.StartRekey{LocalID: t.session.LocalID}}
}

// lookAtArmedLocked ends a change whose new key has carried a handshake, or did
// not in time.
func (t *dialled) lookAtArmedLocked(now time.Time) []control.Event {
	if t.keys.armedAt.IsZero() { // it outlived a restart
		t.armLocked(now)
	}
	id, epoch := t.session.LocalID, t.session.KeyEpoch+1
	st := statsOf(t.dev, t.session.ID)
	switch {
	case st.LastHandshake.After(t.keys.armedAt) && !st.LastHandshake.Equal(t.keys.lastSeen):
		return []control.Event{control.ConfirmRekey{LocalID: id, KeyEpoch: epoch}}
	case now.Before(t.keys.confirm):
		return nil
	}
	return []control.Event{
		control.FailRekey{LocalID: id, KeyEpoch: epoch, Result: wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseUnconfirmed}},
		trouble(id, st),
	}
}

// armLocked uses the new key from the next handshake on, and starts that. The
// gateway answers with it already.
func (t *dialled) armLocked(now time.Time) {
	t.keys.confirm = now.Add(t.m.keys.confirm)
	err := t.dev.SetPresharedKey(t.session.ID, t.session.NextPresharedKey)
	t.keys.lastSeen = statsOf(t.dev, t.session.ID).LastHandshake
	t.keys.armedAt = time.Now()
	if err == nil {
		err = t.dev.Handshake(t.session.ID, false)
	}
	if err != nil {
		t.keys.confirm = now // it will not
		t.m.log.Error("key not armed", event.KeyTunnel, t.cfg.Name, event.KeySession, t.session.ID, event.KeyErr, err)
	}
}

// keyNoticeLocked follows a change of keys at the node.
func (l *link) keyNoticeLocked(a control.Action) {
	switch a := a.(type) {
	case control.KeyArmed:
		if t := l.labelled(a.Session.Label); t != nil && t.session != nil {
			t.takeKeysLocked(a.Session)
			if t.dev != nil {
				t.armLocked(time.Now())
			}
		}
	case control.SessionRekeyed:
		if t := l.labelled(a.Session.Label); t != nil && t.session != nil {
			t.takeKeysLocked(a.Session)
			t.keys = nodeKeys{due: after(time.Now(), t.m.keys.data)}
			t.record(a.Session.ID, event.Event{Kind: event.SessionRekeyed, Cause: epochText(a.Session.KeyEpoch)})
		}
	case control.RekeyFailed:
		if t := l.labelled(a.Session.Label); t != nil && t.session != nil {
			t.rekeyFailedLocked(a)
		}
	}
	l.m.keys.look()
}

// rekeyFailedLocked goes back to the key before, with a handshake at once if
// handshakes may have failed meanwhile.
func (t *dialled) rekeyFailedLocked(a control.RekeyFailed) {
	armed := !t.keys.armedAt.IsZero()
	t.takeKeysLocked(a.Session)
	t.keys = nodeKeys{due: time.Now().Add(min(keyRetry, t.m.keys.data))}
	why := a.Result.Describe(wire.TypeCDN)
	t.m.log.Warn(string(event.RekeyFailed), event.KeyTunnel, t.cfg.Name, event.KeySession, a.Session.ID, event.KeyCause, why)
	t.m.publish(event.Event{Kind: event.RekeyFailed, Session: a.Session.ID, Node: t.m.cfg.Node.Name, Network: t.cfg.Network, Cause: why})
	if !armed || t.dev == nil {
		return
	}
	err := errors.Join(t.dev.SetPresharedKey(a.Session.ID, a.Session.PresharedKey), t.dev.Handshake(a.Session.ID, false))
	if err != nil {
		t.m.log.Error("key not put back", event.KeyTunnel, t.cfg.Name, event.KeySession, a.Session.ID, event.KeyErr, err)
	}
}

// takeKeysLocked takes the keys of a session from the control connection.
func (t *dialled) takeKeysLocked(s control.Session) {
	t.session.PresharedKey, t.session.NextPresharedKey, t.session.KeyEpoch = s.PresharedKey, s.NextPresharedKey, s.KeyEpoch
}

func epochText(epoch uint32) string { return fmt.Sprintf("key epoch %d", epoch) }

// Arm has the data plane answer handshakes with the next key of a session, if
// its node still has the right to it (control.KeyHandler).
func (p *peerConn) Arm(s control.Session) *wire.Result {
	g := p.g
	if r := p.stillMay(s.Network); r != nil {
		return r
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	mb := g.members.byID[s.ID]
	if mb == nil {
		return refusal(wire.CauseLocal, "the session is ending")
	}
	if err := mb.network.dev.SetPresharedKey(s.ID, s.NextPresharedKey); err != nil {
		g.m.log.Error("key not armed", event.KeySession, s.ID, event.KeyErr, err)
		return &wire.Result{Code: wire.CDNError, Error: wire.ErrorResources, Cause: wire.CauseLocal, Text: "the gateway's data plane refused the key"}
	}
	g.followKeysLocked(mb, s)
	return nil
}

var _ control.KeyHandler = (*peerConn)(nil)

// followKeysLocked remembers which keys a session has.
func (g *gateway) followKeysLocked(mb *member, s control.Session) {
	mb.psk, mb.epoch = s.ActiveKey(), s.KeyEpoch
	if s.NextPresharedKey.IsZero() {
		delete(g.changing, mb)
		return
	}
	if g.changing == nil {
		g.changing = map[*member]*gatewayKeys{}
	}
	g.changing[mb] = &gatewayKeys{old: s.PresharedKey, next: s.NextPresharedKey, turnedAt: time.Now()}
}

// keyNotice follows a change of keys at the gateway.
func (p *peerConn) keyNotice(a control.Action) {
	g := p.g
	g.mu.Lock()
	defer g.mu.Unlock()
	switch a := a.(type) {
	case control.SessionRekeyed:
		if mb := g.setKeyLocked(a.Session); mb != nil {
			g.record(mb, event.Event{Kind: event.SessionRekeyed, Cause: epochText(a.Session.KeyEpoch)})
		}
	case control.RekeyFailed:
		if mb := g.setKeyLocked(a.Session); mb != nil {
			why := a.Result.Describe(wire.TypeCDN)
			g.m.log.Warn(string(event.RekeyFailed), event.KeySession, mb.id, event.KeyNode, mb.node, event.KeyCause, why)
			g.m.publish(event.Event{Kind: event.RekeyFailed, Session: mb.id, Node: mb.node, Network: mb.network.cfg.Name, Cause: why})
		}
	}
}

// setKeyLocked gives the data plane the key that both ends agreed on.
func (g *gateway) setKeyLocked(s control.Session) *member {
	mb := g.members.byID[s.ID]
	if mb == nil {
		return nil
	}
	g.followKeysLocked(mb, s)
	if err := mb.network.dev.SetPresharedKey(s.ID, mb.psk); err != nil {
		g.m.log.Error("key not set", event.KeySession, s.ID, event.KeyErr, err)
	}
	return mb
}

// turnKeys keeps data alive where control died in the middle of a change. Only
// the node knows then which key it uses, and a gateway builds its answer with
// one: if no handshake succeeds when one is due it answers with the other.
func (g *gateway) turnKeys(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for mb, k := range g.changing {
		if g.members.byID[mb.id] != mb {
			delete(g.changing, mb)
			continue
		}
		if now.Sub(k.turnedAt) < keyTurn || now.Sub(statsOf(mb.network.dev, mb.id).LastHandshake) < turnAfter {
			continue
		}
		k.turnedAt = now
		if mb.psk.Equal(k.next) {
			mb.psk = k.old
		} else {
			mb.psk = k.next
		}
		if err := mb.network.dev.SetPresharedKey(mb.id, mb.psk); err != nil {
			g.m.log.Error("key not set", event.KeySession, mb.id, event.KeyErr, err)
		}
	}
}
