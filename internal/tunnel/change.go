package tunnel

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/life"
)

// Changes of live sessions: docs/protocol.md, "Changes of a live session". A
// gateway offers terms, see terms.go; a node asks for a longer life.

// extendWait is how long Extend waits for the gateway's answer.
const extendWait = 10 * time.Second

// Extend asks the gateway to let a tunnel's session live longer by that much.
// What it grants, which may be less, is in the tunnel's ExpiresAt.
func (m *Manager) Extend(ctx context.Context, name string, by time.Duration) (api.Tunnel, error) {
	m.mu.Lock()
	t, err := m.tunnelLocked(name)
	if err == nil {
		err = t.extendableLocked(api.IfSerialOf(ctx))
	}
	if err != nil {
		m.mu.Unlock()
		return api.Tunnel{}, err
	}
	request := wishOf(ctx)
	now := bootNow()
	left := t.life.AbsoluteTo(now, time.Now()).Since(now)
	conn, what := t.link.conn, sessionName(t.session.ID)
	ask := control.ExtendSession{LocalID: t.session.LocalID, Left: max(time.Second, left) + by, RequestID: request, IfSerial: api.IfSerialOf(ctx)}
	answer := make(chan error, 1)
	t.extending[request] = answer
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(t.extending, request)
		m.mu.Unlock()
	}()
	if err := m.doIf(ctx, conn, ask, request, what); err != nil {
		return api.Tunnel{}, err
	}
	timeout := time.NewTimer(extendWait)
	defer timeout.Stop()
	select {
	case err = <-answer:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timeout.C:
		err = &api.Error{Code: api.Failed, Message: fmt.Sprintf("tunnel %q: the gateway has not answered within %v", name, extendWait), Hint: "it will when it is reached again; `tunnelctl status` shows until when the session lives"}
	}
	if err != nil {
		return api.Tunnel{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return t.view(), nil
}

// extendableLocked says why the tunnel has no life that could be longer.
func (t *dialled) extendableLocked(ifSerial uint64) error {
	switch {
	case (t.session == nil || t.link.conn == nil) && ifSerial != 0:
		return stale(fmt.Sprintf("the session of tunnel %q", t.cfg.Name), ifSerial, 0)
	case t.session == nil || t.link.conn == nil:
		return &api.Error{Code: api.Failed, Message: fmt.Sprintf("tunnel %q has no session to extend: it is %v", t.cfg.Name, t.state), Hint: fmt.Sprintf("`tunnelctl up %s` begins one", t.cfg.Name)}
	case t.life.Terms.Absolute == 0:
		return &api.Error{Code: api.Failed, Message: fmt.Sprintf("tunnel %q: nothing ends its session at a fixed time", t.cfg.Name)}
	}
	return nil
}

// extendedLocked takes a longer life.
func (t *dialled) extendedLocked(a control.SessionExtended) {
	t.toldLocked(a.Session)
	t.record(a.Session.ID, event.Event{Kind: event.SessionExtended, Request: a.RequestID, Cause: untilText(&t.life)})
	t.answerLocked(a.RequestID, nil)
}

// answerLocked tells whoever waits for the answer to a wish.
func (t *dialled) answerLocked(request session.ID, err error) {
	if answer := t.extending[request]; answer != nil {
		answer <- err
		delete(t.extending, request)
	}
}

// changeRefusedLocked: nothing has changed, because this end or the gateway did
// not want it.
func (t *dialled) changeRefusedLocked(a control.ChangeRefused) {
	why := a.Result.Describe(wire.TypeCDN)
	t.m.log.Warn(string(event.ChangeRefused), event.KeyTunnel, t.cfg.Name, event.KeySession, a.Session.ID, event.KeyCause, why, event.Request(a.Offer.RequestID))
	t.m.publish(event.Event{Kind: event.ChangeRefused, Session: a.Session.ID, Node: t.m.cfg.Node.Name, Network: t.cfg.Network, Cause: why, Request: a.Offer.RequestID})
	code := api.Failed
	if a.Result.Cause == wire.CauseNoExtension || a.Result.Cause == wire.CauseRevoked || a.Result.Cause == wire.CauseNetworkRight {
		code = api.NotAllowed
	}
	t.answerLocked(a.Offer.RequestID, &api.Error{Code: code, Message: fmt.Sprintf("tunnel %q: %s", t.cfg.Name, why), Hint: "the network's `extend` in the gateway's configuration says how much longer a session may live"})
}

// untilText says when a session ends, for its story.
func untilText(l *life.Life) string {
	at := instant(l.ExpiresAt(bootNow(), time.Now()))
	if at == nil {
		return ""
	}
	return "ends at " + at.UTC().Format(time.RFC3339)
}

// Change takes a gateway's terms (control.ChangeHandler): on the host first,
// where it can be taken back.
func (c *linkConn) Change(s control.Session) *wire.Result {
	m := c.l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	t := c.l.labelled(s.Label)
	if t == nil || t.session == nil {
		return refusal(wire.CauseLocal, "the tunnel has no session")
	}
	if t.dev == nil { // they are in force as soon as it has an interface
		return nil
	}
	if mtu := t.mtu(int(s.MTU)); mtu > t.opened {
		return refusal(wire.CauseLocal, "the interface was made for an MTU of %d, not %d", t.opened, mtu)
	}
	old := *t.session
	if err := t.takeTermsLocked(s); err != nil {
		if back := t.takeTermsLocked(old); back != nil {
			m.log.Error("terms not put back", event.KeyTunnel, t.cfg.Name, event.KeySession, s.ID, event.KeyErr, back)
		}
		return refusal(wire.CauseLocal, "%v", err)
	}
	return nil
}

// takeTermsLocked gives the interface the addresses and the MTU of s.
func (t *dialled) takeTermsLocked(s control.Session) error {
	taken, _ := t.accept(&s)
	if err := t.dev.SetAllowedIPs(s.ID, sortPrefixes(append(hostPrefixes(s.Peers), taken...))); err != nil {
		return fmt.Errorf("data plane: %w", err)
	}
	if err := t.m.host.SetLink(t.ifname, hostPrefixes(s.Addresses), t.mtu(int(s.MTU))); err != nil {
		return fmt.Errorf("interface %q: %w", t.ifname, err)
	}
	if err := t.m.host.SetRoutes(t.ifname, taken); err != nil {
		return fmt.Errorf("interface %q: %w", t.ifname, err)
	}
	return nil
}

// Extend is asked of gateways only.
func (c *linkConn) Extend(a control.AskExtend) control.Extended {
	return control.Extended{LocalID: a.Session.LocalID, Refusal: notAGateway()}
}

// termsChangedLocked: the gateway's terms are in force.
func (t *dialled) termsChangedLocked(a control.TermsChanged) {
	s := a.Session
	t.session, t.life.Grace = &s, s.Timers.Grace
	if t.dev != nil {
		taken, refused := t.accept(&s)
		t.taken = taken
		t.setRefused(refused)
	}
	t.deadlineLocked()
	e := event.Event{Kind: event.SessionChanged, Request: a.RequestID, Cause: termsText(a.Terms)}
	if a.Terms.HasRoutes {
		e = event.Event{Kind: event.RoutesChanged, Request: a.RequestID}
	}
	t.record(s.ID, e)
}

// termsText says what of a session's terms has changed; routes have an event of
// their own.
func termsText(t control.Terms) string {
	var all []string
	if len(t.Addresses) > 0 {
		all = append(all, fmt.Sprintf("addresses %v", t.Addresses))
	}
	if t.MTU > 0 {
		all = append(all, fmt.Sprintf("MTU %d", t.MTU))
	}
	if t.Timers != (wire.Timers{}) {
		all = append(all, fmt.Sprintf("hello %v, misses %d, grace %v", t.Timers.Hello, t.Timers.Misses, t.Timers.Grace))
	}
	return strings.Join(all, ", ")
}

// Change is asked of nodes only.
func (p *peerConn) Change(control.Session) *wire.Result {
	return &wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseToken, Text: "this end offers"}
}

// Extend decides about a node's wish to live longer (control.ChangeHandler): by
// its rights and by what the network allows in all. What is granted takes effect
// when it is in the journal.
func (p *peerConn) Extend(a control.AskExtend) control.Extended {
	g := p.g
	no := func(r *wire.Result) control.Extended {
		return control.Extended{LocalID: a.Session.LocalID, Refusal: r}
	}
	if r := p.stillMay(a.Session.Network); r != nil {
		return no(r)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	mb := g.members.byID[a.Session.ID]
	if mb == nil || mb.life.Over {
		return no(refusal(wire.CauseLocal, "the session is ending"))
	}
	now := bootNow()
	terms := mb.life.Terms
	left := mb.life.AbsoluteTo(now, time.Now()).Since(now)
	by := min(a.Session.Extended+a.Left-left, mb.network.cfg.Timers.Extend).Truncate(time.Second)
	switch {
	case terms.Absolute == 0:
		return no(refusal(wire.CauseNoExtension, "nothing ends the session at a fixed time"))
	case by <= a.Session.Extended:
		return no(refusal(wire.CauseNoExtension, "network %q lets a session live %v longer than %v", mb.network.cfg.Name, mb.network.cfg.Timers.Extend, mb.network.cfg.Timers.Absolute))
	}
	terms.Absolute = max(time.Second, left+by-a.Session.Extended)
	return control.Extended{LocalID: a.Session.LocalID, Lifetime: terms, By: by}
}

// stillMay looks at the node's rights again.
func (p *peerConn) stillMay(network string) *wire.Result {
	serial := p.g.registry.RevocationSerial()
	networks, _, ok := p.g.registry.Rights(p.nodeID)
	switch {
	case !ok:
		return refusal(wire.CauseRevoked, "node %q is revoked", p.node)
	case !slices.Contains(networks, network):
		return refusal(wire.CauseNetworkRight, "node %q has lost its right to network %q", p.node, network)
	}
	p.serial = serial
	return nil
}

// extended gives the session its longer life.
func (p *peerConn) extended(a control.SessionExtended) {
	g := p.g
	g.mu.Lock()
	defer g.mu.Unlock()
	mb := g.members.byID[a.Session.ID]
	if mb == nil {
		return
	}
	mb.life.Terms = mb.network.lifetimeOf(a.Session)
	mb.told = mb.life.Terms
	mb.deadline()
	g.record(mb, event.Event{Kind: event.SessionExtended, Request: a.RequestID, Cause: untilText(&mb.life)})
}

// lifetimeOf is what ends a session of this network: what it was granted beyond
// the network's own counts as far as the network allows that now.
func (n *network) lifetimeOf(s control.Session) wire.Lifetime {
	l := n.lifetime()
	if l.Absolute > 0 {
		l.Absolute += min(s.Extended, n.cfg.Timers.Extend)
	}
	return l
}

var (
	_ control.ChangeHandler = (*linkConn)(nil)
	_ control.ChangeHandler = (*peerConn)(nil)
)
