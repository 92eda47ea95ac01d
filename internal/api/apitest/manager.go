// Package apitest is a daemon for tests: an [api.Manager] with a small world of
// its own that writes down what it was asked.
package apitest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"tunneld/internal/api"
)

// What the world has. Names that are not here do not exist; three others have a
// meaning for every verb that takes a name: Denied, Broken and Slow.
const (
	Node     = "gw1"
	BootID   = "11111111-2222-4333-8444-555555555555"
	HomeID   = "0b6f5a52-76a7-4c31-9a0e-0d6c2f6f9a10" // session of tunnel home
	BranchID = "5d3a8c1e-9f20-4b77-8e55-3c1d2e4f5a6b" // session of node branch
	WishID   = "7e1f0a3c-52b8-4d19-8c6e-2f4a9b0d1e37" // request that began it

	Denied = "denied" // is answered with api.NotAllowed
	Broken = "broken" // is answered with an error that is no *api.Error
	Slow   = "slow"   // is answered when the caller's context ends
)

// Start is when everything in the world began.
var Start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Manager is the fake. The zero Manager is a daemon with tunnels and networks.
// Its methods may be called from any goroutine.
type Manager struct {
	Bare bool // it has none, and its events cannot be read

	mu    sync.Mutex // guards everything below
	asked []string
	next  chan api.Event
}

var _ api.Manager = (*Manager)(nil)

// Asked returns what the Manager was asked so far, one text a call.
func (m *Manager) Asked() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.asked...)
}

func (m *Manager) note(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, fmt.Sprintf(format, args...))
}

// named plays the names that mean something for every verb.
func named(ctx context.Context, verb, name string) error {
	switch name {
	case Denied:
		return &api.Error{Code: api.NotAllowed, Message: fmt.Sprintf("the gateway refuses %s of %q by right", verb, name)}
	case Broken:
		return errors.New("the journal: no space left on device")
	case Slow:
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func noSuch(kind, name, hint string) error {
	return &api.Error{Code: api.NoSuch, Message: fmt.Sprintf("no %s named %q", kind, name), Hint: hint}
}

// tunnel checks a tunnel's name.
func (m *Manager) tunnel(ctx context.Context, verb, name string) error {
	if err := named(ctx, verb, name); err != nil {
		return err
	}
	for _, t := range m.tunnels() {
		if t.Name == name {
			return atSerial(ctx, t.Serial)
		}
	}
	return noSuch("tunnel", name, "configured tunnels are: home, office")
}

// atSerial refuses what is wanted at another serial.
func atSerial(ctx context.Context, serial *uint64) error {
	if want := api.IfSerialOf(ctx); want != 0 && (serial == nil || *serial != want) {
		return &api.Error{Code: api.Stale, Message: fmt.Sprintf("not at serial %d", want), Hint: "look at it again"}
	}
	return nil
}

// Version is that of a release.
func (m *Manager) Version() api.Version {
	return api.Version{Version: "v1.2.3", Revision: "0123456789ab", Go: "go1.26.8"}
}

// Status is a node with two tunnels, one up and one refused, that is a gateway
// with one network and one problem.
func (m *Manager) Status(context.Context) (api.Status, error) {
	m.note("status")
	s := api.Status{Node: Node, BootID: BootID, Engine: "native", Tunnels: m.tunnels(), KeyMemory: api.KeyMemory{Locked: true, Swap: new(false)}}
	if !m.Bare {
		s.Networks = []api.Network{{
			Name: "office", Interface: "tnl1",
			Pools:     []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")},
			Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1")},
			Sessions:  1, Leased: 2, Limits: api.Limits{RateUp: new(uint64(20_000_000)), Direction: new("duplex")},
		}}
		s.KeyMemory = api.KeyMemory{Swap: new(true), Why: new("RLIMIT_MEMLOCK is 65536 octets"), Mend: new("systemctl edit tunneld: LimitMEMLOCK=infinity under [Service]")}
		s.Problems = []api.Problem{{Interface: "tnl1", What: "IPv4 forwarding is off", Mend: "sysctl -w net.ipv4.ip_forward=1"}}
	}
	return s, nil
}

func (m *Manager) tunnels() []api.Tunnel {
	if m.Bare {
		return nil
	}
	return []api.Tunnel{
		{
			Name: "home", State: "established", Session: new(HomeID),
			Addresses: []netip.Addr{netip.MustParseAddr("10.78.0.2"), netip.MustParseAddr("fd78::2")},
			Gateway:   new("vpn.example.com:443"), Path: new("udp"), Endpoint: new("192.0.2.7:443"),
			Interface: new("tnl0"), MTU: new(1420), KeyEpoch: new(uint32(3)), Resumes: 2,
			LastHandshakeAt: new(Start.Add(time.Minute)), RxBytes: 123456, TxBytes: 654321, Since: new(Start),
			Routes:        []netip.Prefix{netip.MustParsePrefix("10.78.0.0/16")},
			RefusedRoutes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")},
			Advertise:     []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")},
			DataAlive:     new(true), Enabled: true,
			LifetimeMillis: new(int64(1_800_000)), Refresher: new("node"), RefreshAt: new(Start.Add(15 * time.Minute)), Serial: new(uint64(7)),
		},
		{
			Name: "office", State: "idle", Since: new(Start),
			LastError: new("gateway says: \x1b[31mno such network\x1b[0m"),
		},
	}
}

// Sessions has one session.
func (m *Manager) Sessions(context.Context) ([]api.Session, error) {
	m.note("sessions")
	if m.Bare {
		return nil, nil
	}
	return []api.Session{branch()}, nil
}

func branch() api.Session {
	return api.Session{
		Session: BranchID, Node: "branch", Network: "office", State: "suspended",
		Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.2")}, Path: new("udp"), Endpoint: new("198.51.100.9:40000"),
		Resumes: 1, RxBytes: 10, TxBytes: 20, Since: new(Start), ExpiresAt: new(Start.Add(24 * time.Hour)), Quarantined: true,
		Serial: new(uint64(9)),
	}
}

// Session knows BranchID.
func (m *Manager) Session(ctx context.Context, id string) (api.SessionDetail, error) {
	m.note("session %s", id)
	if err := named(ctx, "session show", id); err != nil {
		return api.SessionDetail{}, err
	}
	if id != BranchID {
		return api.SessionDetail{}, noSuch("session", id, "")
	}
	return api.SessionDetail{
		Session: branch(), History: story(), Limits: api.Limits{RateDown: new(uint64(1_500_000)), Direction: new("down")},
		RxDropped: &api.Drops{Direction: 3}, TxDropped: &api.Drops{Rate: 7, Gate: 1},
	}, nil
}

func past() []api.Event {
	return []api.Event{
		{Time: Start, Event: "session-established", Session: new(BranchID), Node: new("branch"), Network: new("office"), Request: new(WishID)},
		{Time: Start.Add(1500 * time.Millisecond), Event: "session-suspended", Session: new(BranchID), Node: new("branch"), Network: new("office"), Cause: new("transport lost: connection reset")},
	}
}

// story is what happened to the branch's session since.
func story() []api.Event {
	return append(past(),
		api.Event{Time: Start.Add(2 * time.Second), Event: "session-resumed", Session: new(BranchID), Node: new("branch"), Network: new("office"), From: new("198.51.100.9:41234"), Cause: new("peer was restarted")},
		api.Event{Time: Start.Add(3 * time.Second), Event: "session-rekeyed", Session: new(BranchID), Node: new("branch"), Network: new("office"), Cause: new("key epoch 1")},
		api.Event{Time: Start.Add(4 * time.Second), Event: "session-closed", Session: new(BranchID), Node: new("branch"), Network: new("office"), Cause: new("ended by an administrator"), RxBytes: new(uint64(10)), TxBytes: new(uint64(20)), Request: new(WishID)})
}

// KillSession knows BranchID.
func (m *Manager) KillSession(ctx context.Context, id, reason string) error {
	m.note("kill %s %q", id, reason)
	if err := named(ctx, "session kill", id); err != nil {
		return err
	}
	if id != BranchID {
		return noSuch("session", id, "")
	}
	return atSerial(ctx, branch().Serial)
}

// ReleaseSession knows BranchID.
func (m *Manager) ReleaseSession(ctx context.Context, id string) error {
	m.note("release %s", id)
	if err := named(ctx, "session release", id); err != nil {
		return err
	}
	if id != BranchID {
		return noSuch("session", id, "")
	}
	return nil
}

// Invite invites to network office.
func (m *Manager) Invite(ctx context.Context, req api.InviteRequest) (api.InviteReply, error) {
	m.note("invite %s %v %v %d %v", req.Node, req.Networks, req.Advertise, req.TTLMillis, req.Replace)
	if req.RateUp+req.RateDown+req.Direction != "" {
		m.note("limits up %q down %q direction %q", req.RateUp, req.RateDown, req.Direction)
	}
	if err := named(ctx, "invite", req.Node); err != nil {
		return api.InviteReply{}, err
	}
	for _, n := range req.Networks {
		if n != "office" {
			return api.InviteReply{}, noSuch("network", n, "networks of this gateway are: office")
		}
	}
	return api.InviteReply{
		Code:      "tnl1-code-of-" + req.Node,
		ExpiresAt: Start.Add(time.Duration(req.TTLMillis) * time.Millisecond),
	}, nil
}

// Nodes are branch, which is enrolled, and bob, who is invited.
func (m *Manager) Nodes(context.Context) ([]api.Node, error) {
	m.note("nodes")
	if m.Bare {
		return nil, nil
	}
	return []api.Node{
		{
			Name: "branch", ID: new("3f0c2b1a-0000-4000-8000-000000000001"), State: "enrolled", Networks: []string{"office"},
			Advertise: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")}, Sessions: 1, ExpiresAt: new(Start.Add(24 * time.Hour)),
			Limits: api.Limits{RateUp: new(uint64(5_000_000)), Direction: new("duplex")},
		},
		{Name: "bob", State: "invited", Networks: []string{"office"}},
	}, nil
}

// RevokeNode knows branch.
func (m *Manager) RevokeNode(ctx context.Context, name string) error {
	m.note("revoke %s", name)
	if err := named(ctx, "node revoke", name); err != nil {
		return err
	}
	if name != "branch" {
		return noSuch("node", name, "`tunnelctl node list` shows them")
	}
	return nil
}

// Drain succeeds.
func (m *Manager) Drain(_ context.Context, req api.DrainRequest) error {
	m.note("drain to %q over %v cancel %v", req.To, time.Duration(req.OverMillis)*time.Millisecond, req.Cancel)
	return nil
}

// Join accepts codes that begin with tnl1-.
func (m *Manager) Join(ctx context.Context, req api.JoinRequest) (api.JoinReply, error) {
	m.note("join %s as %q interface %q", req.Code, req.As, req.Interface)
	if err := named(ctx, "join", req.Code); err != nil {
		return api.JoinReply{}, err
	}
	if len(req.Code) < 5 || req.Code[:5] != "tnl1-" {
		return api.JoinReply{}, &api.Error{Code: api.Failed, Message: "the invite code is garbled", Hint: "copy the whole line"}
	}
	name := req.As
	if name == "" {
		name = "office"
	}
	return api.JoinReply{
		Node: "alice", Gateway: "vpn.example.com:443",
		Tunnels: []api.JoinedTunnel{{
			Name: name, File: "/var/lib/tunneld/tunnels/" + name + ".toml",
			Routes: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")},
		}},
	}, nil
}

// Up knows the tunnels of Status.
func (m *Manager) Up(ctx context.Context, tunnel string, wait time.Duration) (api.Tunnel, error) {
	m.note("up %s %v", tunnel, wait)
	return m.known(ctx, "up", tunnel)
}

// known is a tunnel of Status.
func (m *Manager) known(ctx context.Context, verb, name string) (api.Tunnel, error) {
	if err := m.tunnel(ctx, verb, name); err != nil {
		return api.Tunnel{}, err
	}
	for _, t := range m.tunnels() {
		if t.Name == name {
			return t, nil
		}
	}
	panic("unreachable: the name was checked")
}

// Down knows the tunnels of Status.
func (m *Manager) Down(ctx context.Context, tunnel string) error {
	m.note("down %s", tunnel)
	return m.tunnel(ctx, "down", tunnel)
}

// Leave knows the tunnels of Status.
func (m *Manager) Leave(ctx context.Context, tunnel string) error {
	m.note("leave %s", tunnel)
	return m.tunnel(ctx, "leave", tunnel)
}

// Suspend knows the tunnels of Status.
func (m *Manager) Suspend(ctx context.Context, tunnel string) error {
	m.note("suspend %s", tunnel)
	return m.tunnel(ctx, "suspend", tunnel)
}

// Resume knows the tunnels of Status.
func (m *Manager) Resume(ctx context.Context, tunnel string) error {
	m.note("resume %s", tunnel)
	return m.tunnel(ctx, "resume", tunnel)
}

// Extend knows the tunnels of Status.
func (m *Manager) Extend(ctx context.Context, name string, by time.Duration) (api.Tunnel, error) {
	m.note("extend %s %v", name, by)
	return m.known(ctx, "extend", name)
}

// Events remembers two; those that follow are whatever is given to Happen.
func (m *Manager) Events(ctx context.Context, follow bool) ([]api.Event, <-chan api.Event, error) {
	m.note("events %v", follow)
	if m.Bare {
		return nil, nil, named(ctx, "events", Broken)
	}
	if !follow {
		return past(), nil, nil
	}
	in, out := m.feed(), make(chan api.Event)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-in:
				if e == (api.Event{}) {
					return
				}
				out <- e
			}
		}
	}()
	return past(), out, nil
}

func (m *Manager) feed() chan api.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.next == nil {
		m.next = make(chan api.Event)
	}
	return m.next
}

// Happen gives e to one reader that follows, and waits until there is one.
func (m *Manager) Happen(ctx context.Context, e api.Event) error {
	select {
	case m.feed() <- e:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CutOff ends the stream of one reader that follows, as if it were too slow.
func (m *Manager) CutOff(ctx context.Context) error { return m.Happen(ctx, api.Event{}) }
