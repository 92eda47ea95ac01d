package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
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
	t.link.failures = 0
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

// handshakePoll is how often a tunnel that is coming up is looked at for its
// first handshake, of which the data plane tells nobody.
const handshakePoll = 2 * time.Millisecond

// await waits until a tunnel carries packets, or is refused.
func (t *dialled) await(ctx context.Context, wait time.Duration) (api.Tunnel, error) {
	for {
		t.m.mu.Lock()
		v, changed, err := t.view(), t.changed, t.verdict()
		t.m.mu.Unlock()
		if err != nil {
			return api.Tunnel{}, err
		}
		var poll <-chan time.Time
		if v.State == session.Established.String() || v.State == session.Suspended.String() {
			if v.DataAlive != nil && *v.DataAlive {
				return v, nil
			}
			poll = time.After(handshakePoll)
		}
		select {
		case <-changed:
		case <-poll:
		case <-ctx.Done():
			e := &api.Error{Code: api.Failed, Message: fmt.Sprintf("tunnel %q is not up after %v: it is %s", t.cfg.Name, wait, v.State)}
			if v.LastError != nil {
				e.Message += ": " + *v.LastError
			}
			if poll != nil {
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
	if err != nil {
		m.mu.Unlock()
		return err
	}
	err = t.wantLocked(false)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	t.close(ctx)
	return nil
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
	res := wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseAdministrator, Text: reason}
	if mb != nil {
		return mb.conn.conn.Do(ctx, control.CloseSession{LocalID: mb.local, Result: res, Statistics: m.gateway.statistics(mb), RequestID: api.RequestOf(ctx)})
	}
	m.mu.Lock()
	conn, s := t.link.conn, t.session
	m.mu.Unlock()
	if conn == nil || s == nil {
		return &api.Error{Code: api.NoSuch, Message: fmt.Sprintf("no session %q", id)}
	}
	return conn.Do(ctx, control.CloseSession{LocalID: s.LocalID, Result: res, RequestID: api.RequestOf(ctx)})
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
	ttl := time.Duration(q.TTLMillis) * time.Millisecond
	code, err := g.registry.Invite(auth.InviteRequest{
		Node: q.Node, Networks: networks, Advertise: q.Advertise, TTL: ttl, Replace: q.Replace, Gateway: m.cfg.Gateway.Public,
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
		v := api.Node{Name: n.Name, State: string(n.State), Networks: notNil(n.Networks), Advertise: notNil(n.Advertise), ExpiresAt: instant(n.ExpiresAt)}
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

// Join enrols this node with an invite code and starts the tunnels.
func (m *Manager) Join(ctx context.Context, q api.JoinRequest) (api.JoinReply, error) {
	code, err := auth.ParseCode(q.Code)
	if err != nil {
		return api.JoinReply{}, codeError(err)
	}
	if code.Node != m.cfg.Node.Name {
		return api.JoinReply{}, &api.Error{Code: api.Failed, Message: fmt.Sprintf("the invite is for node %q, this node is %q", code.Node, m.cfg.Node.Name), Hint: fmt.Sprintf("invite %q on the gateway, or set node.name in the configuration", m.cfg.Node.Name)}
	}
	if err := m.checkNewTunnel(q.As, q.Interface); err != nil {
		return api.JoinReply{}, err
	}
	if err := m.checkNewGateway(q.As, code); err != nil {
		return api.JoinReply{}, err
	}
	reply, id, err := m.enrol(ctx, code, q)
	if err != nil {
		return api.JoinReply{}, err
	}
	return m.keepJoined(code, q, reply, id)
}

// codeError says what to do about a text that is no invite code.
func codeError(err error) error {
	e := &api.Error{Code: api.Failed, Message: err.Error(), Hint: "paste the whole line that `tunnelctl invite` printed"}
	if errors.Is(err, auth.ErrNewerCode) {
		e.Hint = "bring tunneld on this node up to the gateway's version"
	}
	return e
}

// checkNewGateway refuses to join a gateway once more under names that the
// gateway chooses: they are probably taken, and it says them only when the
// invite is used up and the node that this one was is revoked.
func (m *Manager) checkNewGateway(as string, code auth.Code) error {
	if as != "" {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tunnels {
		if t.joined && slices.Contains(t.cfg.Gateways, code.Gateway) {
			return &api.Error{Code: api.Failed, Message: fmt.Sprintf("this node has joined gateway %s already, with tunnel %q", code.Gateway, t.cfg.Name), Hint: fmt.Sprintf("`tunnelctl leave %s` first, or give the new tunnel another name with --as; the invite is not used up", t.cfg.Name)}
		}
	}
	return nil
}

// enrol speaks to the gateway; nothing is kept yet but the key, so that a cut
// after the gateway's answer can be made good with the same code.
func (m *Manager) enrol(ctx context.Context, code auth.Code, q api.JoinRequest) (reply auth.EnrolReply, id auth.Identity, err error) {
	key, err := auth.JoinKey(m.store, code)
	if err != nil {
		return reply, id, failed(err)
	}
	d := carrier.Dialer{Control: setMark}
	c, err := d.DialEnrol(ctx, code.Gateway, code.VerifyGateway)
	if err != nil {
		e := &api.Error{Code: api.Failed, Message: fmt.Sprintf("gateway %s: %v", code.Gateway, err)}
		if errors.Is(err, carrier.ErrUnreachable) {
			e.Hint = "is the gateway running, and its TCP port open?"
		}
		return reply, id, e
	}
	defer c.Close()
	if reply, err = auth.Enrol(c, c.Export, code, key); err != nil {
		return reply, id, enrolError(code, err)
	}
	if id, err = reply.Identity(code, key); err != nil {
		return reply, id, failed(err)
	}
	if q.As != "" && len(reply.Networks) > 1 {
		return reply, id, &api.Error{Code: api.Usage, Message: fmt.Sprintf("the invite is for %d networks: --as names one tunnel only", len(reply.Networks)), Hint: "join again with the same code and without --as"}
	}
	for _, n := range reply.Networks {
		if err := m.checkNewTunnel(joinedName(q, n.Name), ""); err != nil {
			return reply, id, err
		}
	}
	return reply, id, nil
}

// enrolError says what the gateway refused, and whom to ask.
func enrolError(code auth.Code, err error) error {
	e := &api.Error{Code: api.Failed, Message: fmt.Sprintf("gateway %s: %v", code.Gateway, err)}
	switch {
	case errors.Is(err, auth.ErrRevoked):
		e.Code, e.Hint = api.NotAllowed, "ask the gateway's administrator"
	case errors.Is(err, auth.ErrInviteRefused), errors.Is(err, auth.ErrInviteExpired), errors.Is(err, auth.ErrInviteUsed), errors.Is(err, auth.ErrInviteWithdrawn):
		e.Hint = fmt.Sprintf("ask the gateway's administrator for a new invite: `tunnelctl invite %s`", code.Node)
	}
	return e
}

// joinedName is the tunnel's name: the network's unless another was asked for.
func joinedName(q api.JoinRequest, network string) string {
	if q.As != "" {
		return q.As
	}
	return network
}

// checkNewTunnel refuses names that are taken or that cannot be names.
func (m *Manager) checkNewTunnel(name, ifname string) error {
	if name == "" {
		return nil
	}
	if err := auth.ValidName(name); err != nil {
		return &api.Error{Code: api.Usage, Message: err.Error()}
	}
	if err := config.CheckInterface(ifname); ifname != "" && err != nil {
		return &api.Error{Code: api.Usage, Message: err.Error()}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.tunnelLocked(name); err == nil {
		return &api.Error{Code: api.Failed, Message: fmt.Sprintf("there is a tunnel named %q already", name), Hint: fmt.Sprintf("give another name with --as, or `tunnelctl leave %s` first", name)}
	}
	return nil
}

// privateRanges are accepted by a tunnel that was joined, so that the prefixes of
// branches that come later are reached too: RFC 1918, RFC 6598 and RFC 4193. A
// gateway can send nobody's traffic to public addresses through itself, nor
// what this host reaches without it, unless accept_routes is given more.
var privateRanges = []prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fc00::/7"),
}

// keepJoined stores identity and tunnels and starts them.
func (m *Manager) keepJoined(code auth.Code, q api.JoinRequest, reply auth.EnrolReply, id auth.Identity) (api.JoinReply, error) {
	if err := m.store.Update(func(tx store.Tx) error { return auth.Joined(tx, code, id) }); err != nil {
		return api.JoinReply{}, failed(err)
	}
	out := api.JoinReply{Node: id.Name, Gateway: code.Gateway, Tunnels: []api.JoinedTunnel{}}
	for _, n := range reply.Networks {
		accept := slices.DeleteFunc(slices.Concat(n.Pools, n.Routes, privateRanges), isDefault)
		cfg := config.Tunnel{
			Name: joinedName(q, n.Name), Gateways: []string{code.Gateway}, Network: n.Name, Interface: q.Interface, Auto: true,
			Advertise: reply.Advertise, AcceptRoutes: sortPrefixes(slices.DeleteFunc(accept, func(r prefix) bool { return slices.Contains(reply.Advertise, r) })),
		}
		file, err := config.WriteTunnel(m.cfg.Node.StateDir, cfg)
		if err != nil {
			return api.JoinReply{}, failed(err)
		}
		if err := m.addTunnel(cfg); err != nil {
			return api.JoinReply{}, failed(err)
		}
		out.Tunnels = append(out.Tunnels, api.JoinedTunnel{Name: cfg.Name, File: file, Routes: notNil(cfg.AcceptRoutes)})
	}
	m.log.Info("joined", event.KeyPeer, code.Gateway, event.KeyNode, id.Name)
	return out, nil
}

// addTunnel takes up a tunnel while the daemon runs.
func (m *Manager) addTunnel(cfg config.Tunnel) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, err := m.newTunnel(cfg, true)
	if err != nil {
		return err
	}
	m.tunnels = append(m.tunnels, t)
	t.link.startLocked(m.ctx)
	t.link.nudge()
	return nil
}
