package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/config"
	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/event"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/life"
)

// keepalive is how often a node shows itself through the NATs on its way, so
// that the gateway can reach it: WireGuard's usual value.
const keepalive = 25 * time.Second

// dialled is one tunnel of this node. Manager.mu guards it.
type dialled struct {
	m      *Manager
	cfg    config.Tunnel
	joined bool // written by join, not by the administrator
	link   *link

	saved   tunnelV1
	wanted  bool // auto or up, and not down
	ending  bool // its session is being ended by a `down` that names its serial
	ifname  string
	dev     engine.Device    // nil while there is no interface
	session *control.Session // nil while there is none
	state   session.State
	since   time.Time
	base    countersV1
	life    life.Life
	taken   []prefix // routes that lead into the interface
	refused []prefix // routes the gateway sent and this tunnel does not take

	lastErr   error
	cause     wire.Cause // of the last refusal
	denied    bool       // one end does not take the other's certificate, or there is none
	givenUp   bool       // refused for good: only `up` tries again
	broken    bool       // this host does not let it be set up
	retryAt   time.Time  // not before, after a refusal
	failures  int
	reported  time.Time // of a silent data path, last
	keys      nodeKeys
	opened    int                       // MTU that dev was made for
	extending map[session.ID]chan error // who waits for the gateway's answer, by request
	request   session.ID                // of the last `up`, until a session is asked for
	changed   chan struct{}             // closed and made anew at each change, for those who wait
}

// key tells tunnels that share a control connection: the same gateways.
func linkKey(gateways []string) string { return strings.Join(gateways, ",") }

// loadTunnels reads the tunnels of the file and of join, and what outlived the
// last process.
func (m *Manager) loadTunnels() error {
	joined, err := config.ReadTunnels(m.cfg.Node.StateDir)
	if err != nil {
		return err
	}
	all, err := config.Merge(m.cfg, joined)
	if err != nil {
		return err
	}
	for i, cfg := range all.Tunnels {
		t, err := m.newTunnel(cfg, i >= len(m.cfg.Tunnels))
		if err != nil {
			return err
		}
		m.tunnels = append(m.tunnels, t)
	}
	return m.restoreLinks()
}

func (m *Manager) newTunnel(cfg config.Tunnel, joined bool) (*dialled, error) {
	saved, err := m.journal.tunnelState(cfg.Name)
	if err != nil {
		return nil, err
	}
	t := &dialled{m: m, cfg: cfg, joined: joined, saved: saved, since: time.Now(), changed: make(chan struct{}), extending: map[session.ID]chan error{}}
	t.wanted = cfg.Auto && !saved.Down
	t.ifname = cfg.Interface
	if t.ifname == "" {
		t.ifname = saved.Interface
	}
	key := linkKey(cfg.Gateways)
	l := m.links[key]
	if l == nil {
		l = newLink(m, cfg.Gateways)
		m.links[key] = l
	}
	t.link = l
	l.tunnels = append(l.tunnels, t)
	return t, nil
}

// tunnel finds a tunnel by name; the caller holds Manager.mu.
func (m *Manager) tunnelLocked(name string) (*dialled, error) {
	var names []string
	for _, t := range m.tunnels {
		if t.cfg.Name == name {
			return t, nil
		}
		names = append(names, t.cfg.Name)
	}
	e := &api.Error{Code: api.NoSuch, Message: fmt.Sprintf("no tunnel named %q", name), Hint: "no tunnel is configured: join a gateway with `tunnelctl join`"}
	if len(names) > 0 {
		e.Hint = "configured tunnels are: " + strings.Join(names, ", ")
	}
	return nil, e
}

// set changes the state and wakes whoever waits for it.
func (t *dialled) set(s session.State) {
	if t.state != s {
		t.state, t.since = s, time.Now()
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// accept splits the routes a gateway sent into those this tunnel takes and the
// others: accept_routes has the first, and the network's own pools, which hold
// the gateway's addresses. None is taken that would catch the tunnel's own
// packets, or what this host reaches without the tunnel.
func (t *dialled) accept(s *control.Session) (taken, refused []prefix) {
	for _, r := range s.Routes {
		ok := slices.ContainsFunc(t.cfg.AcceptRoutes, func(a prefix) bool { return covers(a, r) })
		if !isDefault(r) && slices.ContainsFunc(s.Peers, r.Contains) {
			ok = true
		}
		if !isDefault(r) && t.saved.Endpoint.IsValid() && r.Contains(t.saved.Endpoint.Addr()) {
			ok = false // the tunnel's own packets would go into the tunnel
		}
		if slices.ContainsFunc(t.cfg.Advertise, func(a prefix) bool { return covers(a, r) }) {
			ok = false // our own prefix
		}
		if ok && !isDefault(r) {
			found, _, overlaps, err := t.m.host.Overlap(r, t.m.oursLocked)
			ok = err == nil && !(overlaps && covers(found, r))
		}
		ok = ok && !t.elsewhereLocked(r)
		if ok {
			taken = append(taken, r)
		} else {
			refused = append(refused, r)
		}
	}
	return sortPrefixes(taken), sortPrefixes(refused)
}

// elsewhereLocked reports whether another tunnel has the route already, or a
// network of this gateway's own.
func (t *dialled) elsewhereLocked(r prefix) bool {
	for _, other := range t.m.tunnels {
		if other != t && slices.Contains(other.taken, r) {
			return true
		}
	}
	return t.m.gateway != nil && slices.ContainsFunc(t.m.gateway.networks, func(n *network) bool {
		return slices.ContainsFunc(n.cfg.Pools, func(p prefix) bool { return covers(p, r) })
	})
}

// setUpLocked gives a session its interface, keys, addresses and routes.
func (t *dialled) setUpLocked(s control.Session) error {
	m := t.m
	if err := t.openLocked(int(s.MTU)); err != nil {
		return err
	}
	if t.session != nil && t.session.ID != s.ID {
		if err := t.dev.Remove(t.session.ID); err != nil {
			return err
		}
	}
	if err := t.dev.SetPrivateKey(s.PrivateKey); err != nil {
		return err
	}
	taken, refused := t.accept(&s)
	err := t.dev.Add(engine.Session{
		ID: s.ID, PeerKey: engine.PublicKey(s.PeerKey), PresharedKey: s.ActiveKey(), Endpoint: t.saved.Endpoint,
		Keepalive: keepalive, Gate: t.gate(), Deadline: t.life.Deadline(bootNow(), time.Now()), SendAbove: t.base.Sent,
		AllowedIPs: sortPrefixes(append(hostPrefixes(s.Peers), taken...)),
	})
	if err != nil {
		return fmt.Errorf("data plane: %w", err)
	}
	if err := m.host.SetLink(t.ifname, hostPrefixes(s.Addresses), t.mtu(int(s.MTU))); err != nil {
		return fmt.Errorf("interface %q: %w", t.ifname, err)
	}
	if err := m.host.SetRoutes(t.ifname, taken); err != nil {
		return fmt.Errorf("interface %q: %w", t.ifname, err)
	}
	t.session, t.taken = &s, taken
	t.setRefused(refused)
	return nil
}

// mtu is the smaller of what the gateway says and what this node allows.
func (t *dialled) mtu(gateways int) int { return min(gateways, t.m.cfg.Data.MTU) }

// openLocked makes the interface if there is none.
func (t *dialled) openLocked(mtu int) error {
	if t.dev != nil {
		return nil
	}
	if t.ifname == "" {
		name, err := t.m.freeInterfaceLocked()
		if err != nil {
			return err
		}
		t.ifname = name
	}
	dev, err := t.m.engine.Open(engine.DeviceConfig{Interface: t.ifname, MTU: t.mtu(mtu)})
	if err != nil {
		return err // it names the interface and the way out
	}
	t.dev, t.opened = dev, t.mtu(mtu)
	if t.cfg.Interface != "" || t.saved.Interface == t.ifname {
		return nil
	}
	t.saved.Interface = t.ifname
	return t.m.journal.saveTunnel(t.cfg.Name, t.saved)
}

// closeLocked removes the interface.
func (t *dialled) closeLocked() {
	if t.dev != nil {
		t.m.closeDevice(t.dev)
		t.dev, t.taken = nil, nil
	}
	for _, other := range t.m.tunnels {
		if other != t && other.session != nil && other.dev != nil && len(other.refused) > 0 {
			other.routeLocked() // t may have had what it could not take
		}
	}
}

// setRefused remembers which routes were not taken, and says so once.
func (t *dialled) setRefused(refused []prefix) {
	if slices.Equal(t.refused, refused) {
		return
	}
	t.refused = refused
	for _, r := range refused {
		t.m.log.Warn("route not accepted", event.KeyTunnel, t.cfg.Name, event.KeyCause, r.String())
		t.m.publish(event.Event{Kind: event.RouteRefused, Session: t.session.ID, Network: t.session.Network, Cause: r.String()})
	}
}

// routeLocked sends into the interface what of the gateway's routes it takes.
func (t *dialled) routeLocked() {
	s := t.session
	taken, refused := t.accept(s)
	err := errors.Join(
		t.dev.SetAllowedIPs(s.ID, sortPrefixes(append(hostPrefixes(s.Peers), taken...))),
		t.m.host.SetRoutes(t.ifname, taken))
	if err != nil {
		t.m.log.Error("routes not changed", event.KeyTunnel, t.cfg.Name, event.KeyErr, err)
		t.lastErr = err
	} else {
		t.taken = taken
	}
	t.setRefused(refused)
}

// refusedLocked remembers why there is no session, and when to ask again.
func (t *dialled) refusedLocked(a control.SessionRefused) {
	res, remote := a.Result, a.Remote
	t.lastErr, t.cause = errors.New(res.Describe(wire.TypeCDN)), res.Cause
	if !remote && res.Text != "" {
		t.lastErr = errors.New(res.Text) // our own words
	}
	t.givenUp = res.Cause.Advice() == wire.GiveUp
	t.reproveLocked(res.Cause)
	t.broken = !remote && res.Cause == wire.CauseLocal
	t.failures++
	t.retryAt = time.Now().Add(control.Backoff(t.failures))
	t.set(session.Idle)
	t.m.log.Warn(string(event.SessionRefused), event.KeyTunnel, t.cfg.Name, event.KeyCause, t.lastErr.Error(), event.Request(a.RequestID))
	t.m.publish(event.Event{Kind: event.SessionRefused, Network: t.cfg.Network, Cause: t.lastErr.Error(), Request: a.RequestID})
}

// record logs a change of a tunnel's session, once, publishes it and adds it to
// the session's story.
func (t *dialled) record(id session.ID, e event.Event) {
	e.Session, e.Node, e.Network = id, t.m.cfg.Node.Name, t.cfg.Network
	t.m.log.Info(string(e.Kind), event.KeyTunnel, t.cfg.Name, event.KeySession, id, event.KeyNetwork, t.cfg.Network,
		event.KeyState, t.state, event.KeyCause, e.Cause, event.Request(e.Request), event.From(e.From), event.Bytes(e.Counters))
	t.m.publish(e)
}

// oursLocked reports whether an interface is this daemon's; the caller holds
// Manager.mu.
func (m *Manager) oursLocked(ifname string) bool {
	return slices.ContainsFunc(m.tunnels, func(t *dialled) bool { return t.ifname == ifname }) ||
		m.gateway != nil && m.gateway.ours(ifname)
}

// freeInterface finds the lowest free tnlN, leaving out those this daemon has
// promised already.
func (m *Manager) freeInterface() (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.freeInterfaceLocked()
}

func (m *Manager) freeInterfaceLocked() (string, error) {
	return m.host.FreeInterface("tnl", func(name string) bool {
		for _, t := range m.tunnels {
			if t.ifname == name {
				return true
			}
		}
		return m.gateway != nil && m.gateway.ours(name)
	})
}

// endpointOf is where a gateway's data plane is: the address that its control
// connection reached, at the same port.
func endpointOf(remote netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
}
