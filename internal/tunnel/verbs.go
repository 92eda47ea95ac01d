package tunnel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/auth"
	"tunneld/internal/config"
	"tunneld/internal/control"
	"tunneld/internal/control/carrier"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/store"
)

// Up starts a tunnel. With a wait it returns when packets can flow, when the
// gateway has refused for good, or when wait is over.
func (m *Manager) Up(ctx context.Context, name string, wait time.Duration) (api.Tunnel, error) {
	m.mu.Lock()
	t, err := m.tunnelLocked(name)
	if err != nil {
		m.mu.Unlock()
		return api.Tunnel{}, err
	}
	err = t.wantLocked(true)
	t.request = api.RequestOf(ctx)
	if err == nil {
		err = t.mendLocked()
	}
	m.mu.Unlock()
	if err != nil {
		return api.Tunnel{}, err
	}
	t.link.nudge()
	if wait <= 0 {
		m.mu.Lock()
		defer m.mu.Unlock()
		return t.view(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return t.await(ctx, wait)
}

// wantLocked says that the tunnel is to be up, or down, also after a restart.
func (t *dialled) wantLocked(up bool) error {
	if t.saved.Down == up {
		t.saved.Down = !up
		t.saved.Held = t.saved.Held && up // with the session the hold is over
		if err := t.m.journal.saveTunnel(t.cfg.Name, t.saved); err != nil {
			t.saved.Down = up
			return &api.Error{Code: api.Failed, Message: fmt.Sprintf("tunnel %q: %v", t.cfg.Name, err)}
		}
	}
	t.wanted = up
	t.givenUp, t.denied, t.broken, t.failures, t.retryAt, t.cause = false, false, false, 0, time.Time{}, wire.CauseNone
	if t.session == nil {
		t.lastErr = nil
	}
	t.link.hurryLocked()
	return nil
}

// mendLocked sets up again what a session lacks that outlived the last process:
// what was in the way when the daemon started may be gone.
func (t *dialled) mendLocked() error {
	if t.session == nil || t.dev != nil {
		return nil
	}
	err := t.setUpLocked(*t.session)
	if err == nil {
		err = t.dev.Handshake(t.session.ID, false)
	}
	t.lastErr = err
	if err != nil {
		t.closeLocked()
		return t.brokenError()
	}
	return nil
}

// brokenError is the error of a tunnel that this host does not let be set up.
func (t *dialled) brokenError() error {
	return &api.Error{Code: api.Failed, Message: fmt.Sprintf("tunnel %q: %v", t.cfg.Name, t.lastErr), Hint: "when that is mended run `tunnelctl up` again"}
}

// await waits until a tunnel carries packets, or is refused.
func (t *dialled) await(ctx context.Context, wait time.Duration) (api.Tunnel, error) {
	for {
		t.m.mu.Lock()
		v, changed, err := t.view(), t.changed, t.verdict()
		t.m.mu.Unlock()
		if err != nil {
			return api.Tunnel{}, err
		}
		stands := v.State == session.Established.String() || v.State == session.Suspended.String()
		if stands && v.DataAlive != nil && *v.DataAlive {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			e := &api.Error{Code: api.Failed, Message: fmt.Sprintf("tunnel %q is not up after %v: it is %s", t.cfg.Name, wait, v.State)}
			if v.LastError != nil {
				e.Message += ": " + *v.LastError
			}
			if stands {
				e.Hint = "the control connection stands but no WireGuard handshake was answered: is UDP blocked on the way to the gateway?"
			} else {
				e.Hint = "it goes on trying; `tunnelctl status` shows how it fares"
			}
			return api.Tunnel{}, e
		}
	}
}

// verdict is the error of a tunnel that was refused for good; the caller holds
// Manager.mu.
func (t *dialled) verdict() error {
	if !t.wanted {
		return &api.Error{Code: api.Failed, Message: fmt.Sprintf("tunnel %q was taken down meanwhile", t.cfg.Name)}
	}
	if t.broken {
		return t.brokenError()
	}
	if !t.givenUp && !t.denied {
		return nil
	}
	e := &api.Error{Code: api.NotAllowed, Message: fmt.Sprintf("tunnel %q: %v", t.cfg.Name, t.lastErr), Hint: "ask the gateway's administrator"}
	if twin, ok := errors.AsType[*twinError](t.lastErr); ok {
		e.Code, e.Hint = api.Failed, fmt.Sprintf("take that down first (`tunnelctl down %s`), or remove one of the two", twin.tunnel)
		return e
	}
	switch {
	case t.cause == wire.CauseUnknownNetwork:
		e.Code, e.Hint = api.NoSuch, "`network` in the tunnel's configuration names one that the gateway does not have"
	case errors.Is(t.lastErr, errNotJoined):
		e.Code, e.Hint = api.Failed, "get an invite from the gateway's administrator and run `tunnelctl join -`"
	case errors.Is(t.lastErr, auth.ErrExpired):
		e.Code, e.Hint = api.Failed, fmt.Sprintf("get an invite from the gateway's administrator (`tunnelctl invite %s --replace`), then run `tunnelctl leave %s` and `tunnelctl join -`", t.m.cfg.Node.Name, t.cfg.Name)
	case errors.Is(t.lastErr, carrier.ErrPeerCertificate):
		e.Code, e.Hint = api.Failed, "whoever answers there is not the gateway this node has joined; if the gateway was set up anew, leave and join again"
	}
	return e
}

// Down closes a tunnel's session and removes its interface; it stays down, also
// after a restart, until Up.
func (m *Manager) Down(ctx context.Context, name string) error {
	m.mu.Lock()
	t, err := m.tunnelLocked(name)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	if api.IfSerialOf(ctx) != 0 {
		if err := t.endIf(ctx); err != nil {
			return err
		}
	}
	m.mu.Lock()
	t.ending = false
	err = t.wantLocked(false)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	t.close(ctx)
	return nil
}

// endIf ends the tunnel's session first, whose machine knows its serial. When it
// has, no other is asked for before the caller says whether one is wanted.
func (t *dialled) endIf(ctx context.Context) error {
	conn, s, err := t.conditionOn(ctx)
	if err != nil {
		return err
	}
	t.m.mu.Lock()
	t.ending = true
	t.m.mu.Unlock()
	request := wishOf(ctx)
	err = t.m.doIf(ctx, conn, control.CloseSession{LocalID: s.LocalID, RequestID: request, IfSerial: api.IfSerialOf(ctx), Result: wire.Result{
		Code: wire.CDNAdministrative, Cause: wire.CauseUser}}, request, sessionName(s.ID))
	if err != nil {
		t.m.mu.Lock()
		t.ending = false
		t.m.mu.Unlock()
		t.link.nudge()
	}
	return err
}

// close ends the tunnel's session, if any, and removes the interface.
func (t *dialled) close(ctx context.Context) {
	t.m.mu.Lock()
	conn, s := t.link.conn, t.session
	var last *wire.Statistics
	if s != nil {
		st := statsOf(t.dev, s.ID)
		last = &wire.Statistics{RxPackets: st.RxPackets, TxPackets: st.TxPackets, RxBytes: st.RxBytes, TxBytes: st.TxBytes}
	}
	t.m.mu.Unlock()
	if s != nil && conn != nil {
		conn.Do(ctx, control.CloseSession{LocalID: s.LocalID, Statistics: last, RequestID: api.RequestOf(ctx), Result: wire.Result{
			Code: wire.CDNAdministrative, Cause: wire.CauseUser}})
	}
	t.m.mu.Lock()
	t.closeLocked()
	t.session, t.refused = nil, nil
	t.set(session.Idle)
	t.m.mu.Unlock()
	t.link.nudge()
}

// Leave takes a tunnel that join wrote off this node, and with the last one
// of its gateway the certificate too.
func (m *Manager) Leave(ctx context.Context, name string) error {
	m.mu.Lock()
	t, err := m.tunnelLocked(name)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	if !t.joined {
		return &api.Error{Code: api.Failed, Message: fmt.Sprintf("tunnel %q stands in the configuration file", name), Hint: "take its [[tunnel]] out of the file and restart the daemon"}
	}
	if err := m.Down(ctx, name); err != nil {
		return err
	}
	if err := config.RemoveTunnel(m.cfg.Node.StateDir, name); err != nil {
		return failed(err)
	}
	if err := m.journal.delete(bucketTunnels, name); err != nil {
		return failed(err)
	}
	m.mu.Lock()
	m.tunnels = slices.DeleteFunc(m.tunnels, func(o *dialled) bool { return o == t })
	t.link.tunnels = slices.DeleteFunc(t.link.tunnels, func(o *dialled) bool { return o == t })
	var unused []string
	for _, address := range t.cfg.Gateways {
		if !slices.ContainsFunc(m.tunnels, func(o *dialled) bool { return slices.Contains(o.cfg.Gateways, address) }) {
			unused = append(unused, address)
		}
	}
	m.mu.Unlock()
	t.link.finishSoon(ctx)
	if err := m.forgetGateways(unused); err != nil {
		return failed(err)
	}
	return nil
}

// forgetGateways forgets who answers at addresses that no tunnel has any more,
// and who this node was in a deployment none of whose gateways is left.
func (m *Manager) forgetGateways(addresses []string) error {
	m.mu.Lock()
	var kept []string
	for _, t := range m.tunnels {
		kept = append(kept, t.cfg.Gateways...)
	}
	m.mu.Unlock()
	return m.store.Update(func(tx store.Tx) error {
		in := map[session.ID]bool{}
		for _, address := range kept {
			if gw, err := auth.LookupGateway(tx, address); err == nil {
				in[gw.Deployment] = true
			}
		}
		for _, address := range addresses {
			gw, err := auth.LookupGateway(tx, address)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if err := auth.DeleteGateway(tx, address); err != nil {
				return err
			}
			if !in[gw.Deployment] {
				if err := auth.DeleteIdentity(tx, gw.Deployment, auth.Node); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// finishSoon ends the connection of a link without tunnels while it can still
// show its certificate.
func (l *link) finishSoon(ctx context.Context) {
	l.m.mu.Lock()
	conn, empty := l.conn, len(l.tunnels) == 0
	l.m.mu.Unlock()
	if conn != nil && empty {
		conn.Do(ctx, control.Stop{Result: wire.Result{Code: wire.StopShuttingDown, Cause: wire.CauseUser}})
	}
}

// KillSession ends a session of this gateway, or one that this node dialled.
func (m *Manager) KillSession(ctx context.Context, id, reason string) error {
	mb, t, err := m.find(id)
	if err != nil {
		return err
	}
	request := wishOf(ctx)
	end := control.CloseSession{
		Result:    wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseAdministrator, Text: reason},
		RequestID: request, IfSerial: api.IfSerialOf(ctx),
	}
	if mb != nil {
		end.LocalID, end.Statistics = mb.local, m.gateway.statistics(mb)
		return m.doIf(ctx, mb.conn, end, request, sessionName(mb.id))
	}
	m.mu.Lock()
	conn, s := t.link.conn, t.session
	m.mu.Unlock()
	if conn == nil || s == nil {
		return &api.Error{Code: api.NoSuch, Message: fmt.Sprintf("no session %q", id)}
	}
	end.LocalID = s.LocalID
	return m.doIf(ctx, conn, end, request, sessionName(s.ID))
}

func (g *gateway) statistics(mb *member) *wire.Statistics {
	st := statsOf(mb.network.dev, mb.id)
	return &wire.Statistics{RxPackets: st.RxPackets, TxPackets: st.TxPackets, RxBytes: st.RxBytes, TxBytes: st.TxBytes}
}

// errNoGateway answers verbs of gateways.
func (m *Manager) errNoGateway(verb string) error {
	return &api.Error{Code: api.Failed, Message: fmt.Sprintf("%s: this node is no gateway", verb), Hint: "run it where the file has a [gateway] section"}
}

// failed wraps an error of this host.
func failed(err error) error { return &api.Error{Code: api.Failed, Message: err.Error()} }

// Invite makes an invite code.
func (m *Manager) Invite(ctx context.Context, q api.InviteRequest) (api.InviteReply, error) {
	g := m.gateway
	if g == nil {
		return api.InviteReply{}, m.errNoGateway("invite")
	}
	networks, err := g.inviteNetworks(q.Networks)
	if err != nil {
		return api.InviteReply{}, err
	}
	for _, a := range q.Advertise {
		for _, n := range g.networks {
			for _, pl := range n.cfg.Pools {
				if pl.Overlaps(a) {
					return api.InviteReply{}, &api.Error{Code: api.Failed, Message: fmt.Sprintf("prefix %v overlaps pool %v of network %q", a, pl, n.cfg.Name), Hint: "a node can advertise only what lies outside the pools"}
				}
			}
		}
	}
	limits, err := g.inviteLimits(q, networks)
	if err != nil {
		return api.InviteReply{}, err
	}
	ttl := time.Duration(q.TTLMillis) * time.Millisecond
	code, err := g.registry.Invite(auth.InviteRequest{
		Node: q.Node, Networks: networks, Advertise: q.Advertise, Limits: limits, TTL: ttl, Replace: q.Replace, Gateway: m.cfg.Gateway.Public,
	}, time.Now())
	if err != nil {
		return api.InviteReply{}, inviteError(q.Node, err)
	}
	line, err := code.Text()
	if err != nil {
		return api.InviteReply{}, failed(err)
	}
	m.log.Info("node invited", event.KeyNode, q.Node, event.Request(api.RequestOf(ctx)))
	m.publish(event.Event{Kind: event.NodeInvited, Node: q.Node, Request: api.RequestOf(ctx)})
	return api.InviteReply{Code: line, ExpiresAt: code.ExpiresAt}, nil
}

func inviteError(node string, err error) error {
	e := &api.Error{Code: api.Failed, Message: err.Error()}
	switch {
	case errors.Is(err, auth.ErrName):
		e.Code = api.Usage
	case errors.Is(err, auth.ErrNameTaken):
		e.Hint = fmt.Sprintf("`tunnelctl invite %s --replace` makes a new node of that name and revokes the old one", node)
	}
	return e
}

// inviteNetworks checks the names of an invite; none means every network.
func (g *gateway) inviteNetworks(names []string) ([]string, error) {
	var all []string
	for _, n := range g.networks {
		all = append(all, n.cfg.Name)
	}
	if len(all) == 0 {
		return nil, &api.Error{Code: api.Failed, Message: "this gateway offers no network", Hint: "add a [[network]] to the configuration and restart the daemon"}
	}
	if len(names) == 0 {
		return all, nil
	}
	for _, name := range names {
		if !slices.Contains(all, name) {
			return nil, &api.Error{Code: api.NoSuch, Message: fmt.Sprintf("no network named %q", name), Hint: "this gateway's networks are: " + strings.Join(all, ", ")}
		}
	}
	return names, nil
}

// enrolNetworks says what a node that enrols is told of its networks.
func (g *gateway) enrolNetworks(names []string) (all []auth.Network) {
	granted, err := g.registry.List()
	if err != nil {
		g.m.log.Error("nodes not listed", event.KeyErr, err)
	}
	for _, name := range names {
		if n := g.network(name); n != nil {
			routes := slices.Clone(n.cfg.Routes)
			for _, node := range granted {
				if slices.Contains(node.Networks, name) {
					routes = append(routes, node.Advertise...)
				}
			}
			all = append(all, auth.Network{Name: name, Pools: n.cfg.Pools, Routes: sortPrefixes(routes)})
		}
	}
	return all
}

// Nodes lists who was invited to this gateway.
func (m *Manager) Nodes(context.Context) ([]api.Node, error) {
	g := m.gateway
	if g == nil {
		return nil, m.errNoGateway("node list")
	}
	nodes, err := g.registry.List()
	if err != nil {
		return nil, failed(err)
	}
	all := []api.Node{}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range nodes {
		v := api.Node{Name: n.Name, State: string(n.State), Networks: notNil(n.Networks), Advertise: notNil(n.Advertise), ExpiresAt: instant(n.ExpiresAt), Limits: limitsView(n.Limits)}
		if !n.ID.IsZero() {
			v.ID = maybe(n.ID.String())
		}
		v.Sessions = len(g.members.byNode[n.ID])
		all = append(all, v)
	}
	return all, nil
}

// RevokeNode takes a node's rights: its gates close, that is journalled, its
// transports are cut; then it returns.
func (m *Manager) RevokeNode(ctx context.Context, name string) error {
	g := m.gateway
	if g == nil {
		return m.errNoGateway("node revoke")
	}
	g.closeGates(name)
	if _, err := g.registry.Revoke(name, time.Now()); err != nil {
		if errors.Is(err, auth.ErrNoNode) {
			return &api.Error{Code: api.NoSuch, Message: fmt.Sprintf("no node named %q", name), Hint: "`tunnelctl node list` shows them"}
		}
		return failed(err)
	}
	g.cutRevoked(ctx)
	m.log.Info("node revoked", event.KeyNode, name, event.Request(api.RequestOf(ctx)))
	m.publish(event.Event{Kind: event.NodeRevoked, Node: name, Request: api.RequestOf(ctx)})
	return nil
}
