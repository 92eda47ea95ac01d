package tunnel

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/event"
)

// pathUDP is how packets travel; there is no other path yet.
const pathUDP = "udp"

// Version says what this daemon is.
func (m *Manager) Version() api.Version { return m.version }

// Status describes this node: its tunnels, its networks and what on this host
// is in their way.
func (m *Manager) Status(context.Context) (api.Status, error) {
	st := api.Status{
		Node: m.cfg.Node.Name, BootID: m.bootID.String(), Engine: m.cfg.Data.Engine,
		Tunnels: []api.Tunnel{}, Networks: []api.Network{}, Problems: []api.Problem{}, KeyMemory: m.keyMemory(),
	}
	st.Problems = append(st.Problems, m.diskProblems()...)
	m.mu.Lock()
	var forwarding []string // interfaces that packets are forwarded through
	for _, t := range m.tunnels {
		st.Tunnels = append(st.Tunnels, t.view())
		if t.dev != nil && len(t.cfg.Advertise) > 0 {
			forwarding = append(forwarding, t.ifname)
		}
	}
	m.mu.Unlock()
	if g := m.gateway; g != nil {
		g.mu.Lock()
		for _, n := range g.networks {
			st.Networks = append(st.Networks, n.view())
			forwarding = append(forwarding, n.ifname)
		}
		g.mu.Unlock()
		g.mu.Lock()
		st.Drain = g.drainView()
		g.mu.Unlock()
		if g.registry.BookLost() {
			st.Problems = append(st.Problems, g.lostBook())
		}
	}
	for _, ifname := range forwarding {
		problems, err := m.host.Problems(ifname)
		if err != nil {
			m.log.Warn("host not examined", event.KeyErr, err)
		}
		for _, p := range problems {
			st.Problems = append(st.Problems, api.Problem{Interface: ifname, What: p.What, Mend: p.Mended})
		}
	}
	return st, nil
}

// view is the tunnel as `status` shows it; the caller holds Manager.mu.
func (t *dialled) view() api.Tunnel {
	v := api.Tunnel{
		Name: t.cfg.Name, State: t.shownLocked().String(), Held: t.saved.Held, Addresses: []netip.Addr{}, Since: &t.since, Enabled: !t.saved.Down,
		Routes: []netip.Prefix{}, RefusedRoutes: notNil(t.refused), Advertise: notNil(t.cfg.Advertise),
		Interface: maybe(t.ifname), Gateway: maybe(cmp.Or(t.link.way.At(), t.cfg.Gateways[0])), LastError: maybeError(t.lastErr),
		Leaving: t.link.leavingView(),
	}
	since := t.since
	v.Since = &since
	s := t.session
	if s == nil {
		return v
	}
	st := statsOf(t.dev, s.ID)
	total := t.base.plus(st)
	path, mtu, epoch, living := pathUDP, t.mtu(int(s.MTU)), s.KeyEpoch, alive(st, time.Now())
	v.Session, v.Addresses, v.Path, v.MTU, v.KeyEpoch = maybe(s.ID.String()), notNil(s.Addresses), &path, &mtu, &epoch
	v.Resumes, v.RxBytes, v.TxBytes = s.Resumes, total.RxBytes, total.TxBytes
	v.Endpoint, v.LastHandshakeAt, v.DataAlive = endpointText(st.Endpoint), instant(st.LastHandshake), &living
	v.ExpiresAt = instant(t.life.ExpiresAt(bootNow(), time.Now()))
	v.Serial = serialOf(t.link.conn, s.ID)
	v.LifetimeMillis, v.Refresher, v.RefreshAt = lifetimeView(&t.life.Refresh, bootNow(), time.Now())
	v.Routes = notNil(t.taken)
	return v
}

// view is the network as `status` shows it; the caller holds gateway.mu.
func (n *network) view() api.Network {
	return api.Network{
		Name: n.cfg.Name, Interface: n.ifname, Pools: notNil(n.cfg.Pools), Addresses: notNil(n.addresses()),
		Routes: notNil(n.cfg.Routes), Sessions: len(n.g.members.byNetwork[n]), Leased: len(n.pool.Leases()), Limits: n.limits().view(),
	}
}

// Sessions lists the sessions of this gateway, oldest first; a node that is no
// gateway has none.
func (m *Manager) Sessions(context.Context) ([]api.Session, error) {
	all := []api.Session{}
	g := m.gateway
	if g == nil {
		return all, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range g.networks {
		for _, mb := range g.members.byNetwork.list(n) {
			all = append(all, mb.view(g))
		}
	}
	return all, nil
}

// view is the session as `sessions` shows it; the caller holds gateway.mu.
func (mb *member) view(g *gateway) api.Session {
	st := statsOf(mb.network.dev, mb.id)
	total := mb.base.plus(st)
	path, epoch, since, serial := pathUDP, mb.epoch, mb.since, mb.serial
	lifetime, refresher, refreshAt := lifetimeView(&mb.life.Refresh, bootNow(), time.Now())
	return api.Session{
		Session: mb.id.String(), Node: mb.node, Network: mb.network.cfg.Name, State: mb.shown().String(),
		Addresses: notNil(mb.addresses), Path: &path, Endpoint: endpointText(st.Endpoint), KeyEpoch: &epoch,
		Resumes: mb.resumes, LastHandshakeAt: instant(st.LastHandshake), RxBytes: total.RxBytes, TxBytes: total.TxBytes,
		Since: &since, ExpiresAt: instant(mb.life.ExpiresAt(bootNow(), time.Now())), Quarantined: mb.stranger(),
		LifetimeMillis: lifetime, Refresher: refresher, RefreshAt: refreshAt, Serial: &serial,
	}
}

// find looks a session up among those of the gateway and those that this node
// dialled.
func (m *Manager) find(id string) (*member, *dialled, error) {
	members, tunnels := m.live(id)
	switch {
	case len(members) == 1 && len(tunnels) == 0:
		return members[0], nil, nil
	case len(tunnels) == 1 && len(members) == 0:
		return nil, tunnels[0], nil
	case len(members)+len(tunnels) > 1:
		return nil, nil, &api.Error{Code: api.NoSuch, Message: fmt.Sprintf("%d sessions begin with %q", len(members)+len(tunnels), id), Hint: "give more of the id; `tunnelctl sessions` lists them"}
	}
	return nil, nil, &api.Error{Code: api.NoSuch, Message: fmt.Sprintf("no session %q", id), Hint: "`tunnelctl sessions` lists those of this gateway, `tunnelctl status` this node's own"}
}

// live are the sessions whose ids begin with id.
func (m *Manager) live(id string) (members []*member, tunnels []*dialled) {
	match := matcher(id)
	if g := m.gateway; g != nil {
		g.mu.Lock()
		for sid, mb := range g.members.byID {
			if match(sid) {
				members = append(members, mb)
			}
		}
		g.mu.Unlock()
	}
	m.mu.Lock()
	for _, t := range m.tunnels {
		if t.session != nil && match(t.session.ID) {
			tunnels = append(tunnels, t)
		}
	}
	m.mu.Unlock()
	return members, tunnels
}

// Events returns the remembered events and, with follow, those after them.
func (m *Manager) Events(ctx context.Context, follow bool) ([]api.Event, <-chan api.Event, error) {
	past, next, cancel := m.bus.Subscribe()
	views := []api.Event{}
	for _, e := range past {
		views = append(views, eventView(e))
	}
	if !follow {
		cancel()
		return views, nil, nil
	}
	out := make(chan api.Event)
	go func() {
		defer close(out)
		defer context.AfterFunc(ctx, cancel)()   // closes next,
		defer context.AfterFunc(m.ctx, cancel)() // which still has what came before
		for e := range next {
			out <- eventView(e)
		}
	}()
	return views, out, nil
}

func eventView(e event.Event) api.Event {
	v := api.Event{Time: e.Time, Event: string(e.Kind), Node: maybe(e.Node), Network: maybe(e.Network), Cause: maybe(e.Cause)}
	if !e.Session.IsZero() {
		v.Session = maybe(e.Session.String())
	}
	if !e.Request.IsZero() {
		v.Request = maybe(e.Request.String())
	}
	v.From = maybe(e.From)
	if e.Counters != nil {
		v.RxBytes, v.TxBytes = &e.Counters.RxBytes, &e.Counters.TxBytes
	}
	return v
}

// maybe is nil for the empty string.
func maybe(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func maybeError(err error) *string {
	if err == nil {
		return nil
	}
	return maybe(err.Error())
}

// instant is nil for the zero time.
func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func endpointText(a netip.AddrPort) *string {
	if !a.IsValid() {
		return nil
	}
	return maybe(a.String())
}

// notNil makes a list that JSON writes as [] when it is empty.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return slices.Clone(list)
}

var _ api.Manager = (*Manager)(nil)
