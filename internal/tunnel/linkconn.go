package tunnel

import (
	"errors"
	"net/netip"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
)

// linkConn decides for a control connection that this node dialled and keeps
// its journal (control.Handler).
type linkConn struct {
	l  *link
	id uint32
}

// Save makes the record durable.
func (c *linkConn) Save(r *control.Record) error {
	return c.l.m.journal.saveConnection(c.l.key, netip.Addr{}, r, nil)
}

// Forget removes the record.
func (c *linkConn) Forget() error { return c.l.m.journal.forgetConnection(c.id) }

// Authorize is asked of gateways only.
func (c *linkConn) Authorize(control.AskAuthorize) *wire.Result { return notAGateway() }

// Grant is asked of gateways only.
func (c *linkConn) Grant(control.AskSession) (control.Grant, *wire.Result) {
	return control.Grant{}, notAGateway()
}

// Sign is asked of gateways only.
func (c *linkConn) Sign(control.AskSign) ([]byte, *wire.Result) { return nil, notAGateway() }

func notAGateway() *wire.Result {
	return &wire.Result{Code: wire.StopNotAuthorized, Text: "this end dialled"}
}

// SetUp gives a session interface, keys, addresses and routes.
func (c *linkConn) SetUp(s control.Session) *wire.Result {
	m := c.l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	t := c.l.labelled(s.Label)
	if t == nil || !t.wanted {
		return &wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseUser, Text: "the tunnel is not wanted any more"}
	}
	t.life = newLife(s.Lifetime, s, time.Time{}, wire.RefresherNode)
	t.life.Proven = c.l.provenAt
	if err := t.setUpLocked(s); err != nil {
		m.log.Error("session not set up", event.KeyTunnel, t.cfg.Name, event.KeySession, s.ID, event.KeyErr, err)
		t.closeLocked()
		if !s.Rebuild { // else its end is told of, and before that no other is asked for
			t.session = nil
		}
		return &wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseLocal, Text: err.Error()}
	}
	if !s.Rebuild {
		t.base = countersV1{}
	}
	return nil
}

// Notify records what happened and acts upon it.
func (c *linkConn) Notify(a control.Action) {
	m := c.l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	defer c.l.nudge()
	switch a := a.(type) {
	case control.Opened:
		c.l.up, c.l.lastErr = true, nil
		c.l.way.Arrived()
		c.l.renewedTransportLocked()
		c.l.provenLocked()
	case control.SessionUp:
		c.sessionUp(a.Session)
	case control.SessionRefused:
		if t := c.l.labelled(a.Label); t != nil {
			t.refusedLocked(a)
		}
		if a.Result.Cause == wire.CauseDraining {
			c.l.way.TurnedAway()
		}
	case control.SessionDown:
		c.sessionDown(a)
	case control.WasSuspended:
		c.l.up, c.l.lastErr = false, a.Err
		c.l.way.Lost(time.Now())
		c.l.later = time.Now().Add(c.l.pace.Lost(a.Err))
		c.setStates(session.Suspended, event.Event{Kind: event.SessionSuspended, Cause: cause(a.Err)})
		c.l.graceLocked()
	case control.Resumed:
		c.resumed(a)
	case control.SpreadTold:
		c.l.pace.Told(a.Spread)
	case control.AttemptFailed:
		c.l.lastErr = a.Err
	case control.GatewayDrains:
		c.l.drainsLocked(a)
	case control.Retargeted:
		c.l.way.SentOn(a.Gateways)
	case control.RebuildRefused:
		if t := c.l.labelled(a.Session.Label); t != nil {
			t.rebuildRefusedLocked(a.Result)
		}
	case control.LifetimeChanged:
		if t := c.l.labelled(a.Session.Label); t != nil {
			t.toldLocked(a.Session)
		}
	case control.SessionExtended:
		if t := c.l.labelled(a.Session.Label); t != nil {
			t.extendedLocked(a)
		}
	case control.TermsChanged:
		if t := c.l.labelled(a.Session.Label); t != nil {
			t.termsChangedLocked(a)
		}
	case control.SessionRefreshed:
		if t := c.l.labelled(a.Session.Label); t != nil {
			t.refreshedLocked(a)
		}
	case control.ChangeRefused:
		if t := c.l.labelled(a.Session.Label); t != nil {
			t.changeRefusedLocked(a)
		}
	case control.Outdated:
		m.outdated.note(a)
	case control.StampTold:
		if t := c.l.labelled(a.Session.Label); t != nil {
			t.stampToldLocked(a)
		}
	case control.CertificateRenewed:
		c.l.renewed(a)
	case control.KeyArmed, control.SessionRekeyed, control.RekeyFailed:
		c.l.keyNoticeLocked(a)
	case control.Ended:
		c.ended(a)
	}
}

// sessionUp starts the data plane: the node that dials starts every handshake.
func (c *linkConn) sessionUp(s control.Session) {
	t := c.l.labelled(s.Label)
	if t == nil || t.dev == nil {
		return
	}
	t.toldLocked(s)
	c.l.holdLater()
	t.lastErr, t.cause, t.denied, t.failures = nil, wire.CauseNone, false, 0
	kind := t.upKind()
	if err := t.dev.Handshake(s.ID, kind == event.SessionRebuilt); err != nil { // which has cost the gateway its keypairs
		t.lastErr = err
		c.l.m.log.Error("handshake not started", event.KeyTunnel, t.cfg.Name, event.KeyErr, err)
	}
	t.set(session.Established)
	t.record(s.ID, event.Event{Kind: kind, Request: s.RequestID})
}

// sessionDown takes a session off the data plane. The interface stays while the
// tunnel is wanted, so that what was meant for it does not leave in the clear.
func (c *linkConn) sessionDown(a control.SessionDown) {
	t := c.l.labelled(a.Session.Label)
	if t == nil {
		return
	}
	m := c.l.m
	final := t.base.plus(statsOf(t.dev, a.Session.ID)).event()
	if t.dev != nil {
		if err := t.dev.Remove(a.Session.ID); err != nil {
			m.log.Error("session not removed from the data plane", event.KeySession, a.Session.ID, event.KeyErr, err)
		}
	}
	if !t.wanted {
		t.closeLocked()
	}
	t.session = nil
	m.goneLocked(a.Session.ID)
	t.set(session.Idle)
	why := a.Result.Describe(wire.TypeCDN)
	if t.wanted {
		t.lastErr, t.cause = errors.New(why), a.Result.Cause
		t.givenUp = a.Result.Cause.Advice() == wire.GiveUp
		t.reproveLocked(a.Result.Cause)
	}
	t.record(a.Session.ID, event.Event{Kind: event.SessionClosed, Cause: why, Request: a.RequestID, Counters: &final})
}

// resumed goes on. Where a restarted gateway has lost the keypair that we send
// with there is a handshake at once.
func (c *linkConn) resumed(a control.Resumed) {
	c.l.up, c.l.lastErr = true, nil
	c.l.renewedTransportLocked()
	c.l.way.Arrived()
	if a.PeerRestarted {
		c.l.way.Restarted()
	}
	for _, t := range c.l.tunnels {
		if t.session == nil || t.dev == nil {
			continue
		}
		if a.PeerRestarted {
			if err := t.dev.PeerRestarted(t.session.ID, keptOf(t.session, a.Kept)); err != nil {
				c.l.m.log.Error("handshake not started", event.KeyTunnel, t.cfg.Name, event.KeyErr, err)
			}
		}
		t.session.Resumes++
		t.lastErr = nil
	}
	c.setStates(session.Established, event.Event{Kind: event.SessionResumed, Cause: restartedCause(a.PeerRestarted), From: c.l.local})
	c.l.provenLocked()
}

// setStates follows the control connection with the states of its sessions.
func (c *linkConn) setStates(to session.State, e event.Event) {
	for _, t := range c.l.tunnels {
		if t.session != nil && (t.state != to || e.Kind == event.SessionResumed) {
			t.set(to)
			t.record(t.session.ID, e)
		}
	}
}

// ended remembers why there is no connection; whether another is begun is for
// the tunnels to say.
func (c *linkConn) ended(a control.Ended) {
	c.l.up = false
	c.l.conn = nil
	c.l.way.Ended()
	why := a.Err
	if why == nil {
		why = errors.New(a.Result.Describe(wire.TypeStopCCN))
	}
	c.l.lastErr = why
	for _, t := range c.l.tunnels {
		if !t.wanted || t.givenUp && !a.Remote { // the latter has a reason of its own
			continue
		}
		t.lastErr, t.cause = why, a.Result.Cause
		if a.Remote && a.Result.Cause.Advice() == wire.GiveUp {
			t.givenUp = true
			t.set(session.Idle)
		}
	}
	c.l.m.log.Info("control connection closed", event.KeyPeer, c.l.key, event.KeyCause, why.Error(), event.Request(a.RequestID))
}

var _ control.Handler = (*linkConn)(nil)
