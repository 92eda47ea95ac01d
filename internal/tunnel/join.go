package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"tunneld/internal/api"
	"tunneld/internal/auth"
	"tunneld/internal/config"
	"tunneld/internal/control/carrier"
	"tunneld/internal/event"
	"tunneld/internal/store"
)

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
		if auth.Refused(err) {
			if err := auth.ForgetJoin(m.store, code); err != nil {
				m.log.Warn("key of a refused invite not forgotten", event.KeyErr, err)
			}
		}
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
	case auth.Refused(err):
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
