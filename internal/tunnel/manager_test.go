package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/auth"
	"tunneld/internal/config"
	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/session"
	"tunneld/internal/store"
	"tunneld/internal/store/storetest"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
	"tunneld/internal/tunnel/host"
	"tunneld/internal/tunnel/host/hosttest"
)

// daemon is a Manager on fakes: its own store, engine and host, and real TLS
// over loopback.
type daemon struct {
	t      *testing.T
	cfg    config.Config
	store  *storetest.Mem
	engine *enginetest.Fake
	host   *hosttest.Fake
	m      *Manager
	stop   context.CancelFunc
	done   chan error
	listen func(string) (net.Listener, error)
	trace  io.Writer // nil: none
	keys   KeyOptions
	book   *book                         // of Info lines; nil: they are not kept
	leaves bool                          // interfaces, to the next process
	kept   map[session.ID][]uint32       // keypairs that the engine goes on with
	keep   auth.Keep                     // outside the store; zero: nothing
	disk   func(store.Store) store.Store // what the store lies on; nil: nothing that matters
}

// run starts a Manager on what the daemon has; the store goes on, engine and
// host are new, as after a restart of the process.
func (d *daemon) run() {
	d.t.Helper()
	d.engine, d.host = &enginetest.Fake{}, hosttest.New()
	d.engine.SetPort(40443)
	d.engine.Keep(d.kept)
	st := store.Store(d.store)
	if d.disk != nil {
		st = d.disk(st)
	}
	m, err := New(Options{
		ParkAfter: time.Millisecond, // so that whatever is tested happens to parked connections, too
		Config:    d.cfg, Store: st, Engine: d.engine, Host: d.host, Listen: d.listen, Trace: d.trace, Keys: d.keys, HandOver: d.leaves, Keep: d.keep,
		Log: slog.New(d.logHandler()).With("node", d.cfg.Node.Name),
	})
	if err != nil {
		d.t.Fatalf("New: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.m, d.stop, d.done = m, cancel, make(chan error, 1)
	go func() { d.done <- m.Run(ctx) }()
	select {
	case <-m.Ready():
	case err := <-d.done:
		d.t.Fatalf("Run: %v", err)
	}
}

func (d *daemon) logHandler() slog.Handler {
	text := slog.NewTextHandler(d.t.Output(), nil)
	if d.book == nil {
		return text
	}
	return slog.NewMultiHandler(text, slog.NewJSONHandler(d.book, nil))
}

// end stops the Manager as SIGTERM does.
func (d *daemon) end() {
	d.t.Helper()
	d.stop()
	select {
	case err := <-d.done:
		if err != nil {
			d.t.Errorf("Run: %v", err)
		}
	case <-time.After(patience):
		d.t.Fatal("Run does not end")
	}
}

// patience is how long a test waits for what must happen, on any machine.
const patience = time.Minute

// wait polls for something that another goroutine does, with a deadline.
func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// newGatewayDaemon is a gateway "hq" with the network "office".
func newGatewayDaemon(t *testing.T) *daemon {
	t.Helper()
	// A loopback address of its own: a port that is listened on again after a
	// restart must not have become somebody's outgoing one meanwhile.
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254)))
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	d := &daemon{t: t, store: storetest.New(t)}
	d.cfg = config.Config{
		Node:    config.Node{Name: "hq", StateDir: t.TempDir()},
		Gateway: &config.Gateway{Listen: address, Public: address},
		Networks: []config.Network{{
			Name: "office", Pools: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24"), netip.MustParsePrefix("fd77::/64")},
			Routes: []netip.Prefix{netip.MustParsePrefix("10.50.0.0/24")},
			Timers: config.Timers{Hello: time.Second, Misses: 3, Grace: time.Hour, Cooloff: time.Minute},
		}},
		Data: config.Data{Engine: "reference", MTU: 1420},
	}
	if _, err := auth.InitGateway(d.store, "hq", time.Now()); err != nil {
		t.Fatal(err)
	}
	return d
}

func newNodeDaemon(t *testing.T, name string) *daemon {
	return &daemon{t: t, store: storetest.New(t), cfg: config.Config{
		Node: config.Node{Name: name, StateDir: t.TempDir()}, Data: config.Data{Engine: "reference", MTU: 1420},
	}}
}

// pair is a gateway and a node that has joined it; both are running.
func pair(t *testing.T, advertise ...netip.Prefix) (gw, node *daemon) {
	t.Helper()
	gw, node = newGatewayDaemon(t), newNodeDaemon(t, "alice")
	gw.run()
	t.Cleanup(gw.end)
	node.run()
	t.Cleanup(node.end)
	node.join(gw, advertise...)
	return gw, node
}

func (d *daemon) join(gw *daemon, advertise ...netip.Prefix) api.JoinReply {
	d.t.Helper()
	invite, err := gw.m.Invite(d.t.Context(), api.InviteRequest{Node: d.cfg.Node.Name, TTLMillis: 60_000, Advertise: advertise})
	if err != nil {
		d.t.Fatalf("Invite: %v", err)
	}
	reply, err := d.m.Join(d.t.Context(), api.JoinRequest{Code: invite.Code})
	if err != nil {
		d.t.Fatalf("Join: %v", err)
	}
	return reply
}

func (d *daemon) tunnel() api.Tunnel {
	d.t.Helper()
	st, err := d.m.Status(d.t.Context())
	if err != nil || len(st.Tunnels) != 1 {
		d.t.Fatalf("Status = %+v, %v; want one tunnel", st, err)
	}
	return st.Tunnels[0]
}

func (d *daemon) sessions() []api.Session {
	d.t.Helper()
	all, err := d.m.Sessions(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	return all
}

// established waits until both ends show one established session and returns
// its id.
func established(t *testing.T, gw, node *daemon) string {
	t.Helper()
	var id string
	wait(t, "an established session", func() bool {
		tn, ss := node.tunnel(), gw.sessions()
		if tn.State != "established" || len(ss) != 1 || ss[0].State != "established" || *tn.Session != ss[0].Session {
			return false
		}
		id = *tn.Session
		return true
	})
	return id
}

func TestJoinBringsTheTunnelUp(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	up, err := node.m.Up(t.Context(), "office", patience)
	if err != nil {
		t.Fatalf("Up: %v", err)
	}
	if *up.Session != id || up.Addresses[0] != netip.MustParseAddr("10.77.0.2") || up.Addresses[1] != netip.MustParseAddr("fd77::2") {
		t.Errorf("Up = %+v", up)
	}
	link, _ := node.host.Link("tnl0")
	if want := []netip.Prefix{netip.MustParsePrefix("10.77.0.2/32"), netip.MustParsePrefix("fd77::2/128")}; !slices.Equal(link.Addresses, want) {
		t.Errorf("addresses = %v, want %v", link.Addresses, want)
	}
	if got, want := node.host.Routes("tnl0"), 3; len(got) != want {
		t.Errorf("routes = %v, want two pools and 10.50.0.0/24", got)
	}
	sid, _ := session.ParseID(id)
	n, ok := node.engine.Device("tnl0").Session(sid)
	if !ok || n.Gate != engine.Open || n.Handshakes == 0 || n.Responder {
		t.Errorf("the node's data plane has %+v, %v", n, ok)
	}
	g, ok := gw.engine.Device("tnl0").Session(sid)
	if !ok || g.Gate != engine.Open || g.Handshakes != 0 || !g.Responder || !g.PresharedKey.Equal(n.PresharedKey) || g.PresharedKey.IsZero() {
		t.Errorf("the gateway's data plane has %+v, %v", g, ok)
	}
}

func TestGatewayRestartKeepsTheSession(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	gw.end()
	wait(t, "the node to notice", func() bool { return node.tunnel().State == "suspended" })
	gw.run()
	if got := established(t, gw, node); got != id {
		t.Errorf("session %v after the restart, want %v", got, id)
	}
	sid, _ := session.ParseID(id)
	if n, _ := node.engine.Device("tnl0").Session(sid); n.Fresh == 0 {
		t.Error("the node started no fresh handshake with the restarted gateway")
	}
	if got := node.tunnel().Resumes; got != 1 {
		t.Errorf("resumes = %d, want 1", got)
	}
}

// TestGatewayRestartWithKeypairs: where the restarted gateway still has the keypair
// that the node sends with there is no handshake; where it has another there is.
func TestGatewayRestartWithKeypairs(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	sid, _ := session.ParseID(id)
	device := node.engine.Device("tnl0")
	for n, c := range []struct {
		sends uint32
		kept  map[session.ID][]uint32
		fresh int // handshakes so far
	}{
		{7, map[session.ID][]uint32{sid: {6, 7}}, 0},
		{7, map[session.ID][]uint32{sid: {6}}, 1},
		{7, map[session.ID][]uint32{session.NewID(): {7}}, 2},
	} {
		if err := device.SendWith(sid, c.sends); err != nil {
			t.Fatal(err)
		}
		gw.end()
		wait(t, "the node to notice", func() bool { return node.tunnel().State == "suspended" })
		gw.kept = c.kept
		gw.run()
		if got := established(t, gw, node); got != id {
			t.Errorf("session %v after the restart, want %v", got, id)
		}
		if s, _ := device.Session(sid); s.Fresh != c.fresh || node.tunnel().Resumes != uint64(n+1) {
			t.Errorf("sending with %d, the gateway having %v: %d fresh handshakes after %d resumes, want %d after %d", c.sends, c.kept, s.Fresh, node.tunnel().Resumes, c.fresh, n+1)
		}
	}
}

// TestChangedRoutesReachTheSessionsOfBefore: routes changed in the file hold, after
// the restart, for the sessions there are.
func TestChangedRoutesReachTheSessionsOfBefore(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	gw.end()
	before, after := netip.MustParsePrefix("10.50.0.0/24"), netip.MustParsePrefix("10.60.0.0/24")
	gw.cfg.Networks[0].Routes = []netip.Prefix{after}
	gw.run()
	wait(t, "the new routes", func() bool {
		got := node.host.Routes("tnl0")
		return slices.Contains(got, after) && !slices.Contains(got, before)
	})
	if got := established(t, gw, node); got != id {
		t.Errorf("session %v after the restart, want %v", got, id)
	}
}

// Where a session's node was last is known after a restart too: its place before
// authentication is kept for it.
func TestGatewayRestartKnowsItsNodes(t *testing.T) {
	gw, node := pair(t)
	established(t, gw, node)
	loopback := netip.MustParseAddr("127.0.0.1")
	if !gw.m.gateway.known(loopback) {
		t.Error("the address of a live session's node is not known")
	}
	gw.end()
	node.end()
	gw.run()
	if !gw.m.gateway.known(loopback) {
		t.Error("the address of a suspended session's node is not known after the restart")
	}
	if gw.m.gateway.known(netip.MustParseAddr("127.0.0.2")) {
		t.Error("an address is known that nobody had")
	}
	node.run()
	established(t, gw, node)
}

func TestNodeRestartKeepsTheSession(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	node.end()
	wait(t, "the gateway to notice", func() bool { return gw.sessions()[0].State == "suspended" })
	// What join wrote is read again at start, as it would be from the file.
	node.run()
	if got := established(t, gw, node); got != id {
		t.Errorf("session %v after the restart, want %v", got, id)
	}
	sid, _ := session.ParseID(id)
	if n, _ := node.engine.Device("tnl0").Session(sid); n.Handshakes == 0 {
		t.Error("the restarted node started no handshake by itself")
	}
}

func TestDownAndUp(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	address := node.tunnel().Addresses[0]
	if err := node.m.Down(t.Context(), "office"); err != nil {
		t.Fatal(err)
	}
	wait(t, "the gateway to forget the session", func() bool { return len(gw.sessions()) == 0 })
	if node.engine.Device("tnl0") != nil {
		t.Error("the interface is still there after down")
	}
	node.end()
	node.run()
	if tn := node.tunnel(); tn.Enabled || tn.State != "idle" {
		t.Errorf("after a restart the tunnel is %v, enabled %v; want idle and down", tn.State, tn.Enabled)
	}
	if _, err := node.m.Up(t.Context(), "office", patience); err != nil {
		t.Fatal(err)
	}
	if again := established(t, gw, node); again == id {
		t.Error("the session after up has the UUID of the one before down")
	}
	if got := node.tunnel().Addresses[0]; got != address {
		t.Errorf("address %v after up, want %v again", got, address)
	}
}

func TestRevokedNodeIsCutAndRefused(t *testing.T) {
	gw, node := pair(t)
	established(t, gw, node)
	if err := gw.m.RevokeNode(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	if got := gw.sessions(); len(got) != 0 {
		t.Errorf("sessions after revoke: %+v", got)
	}
	wait(t, "the node to be told", func() bool { return node.tunnel().State == "idle" })
	_, err := node.m.Up(t.Context(), "office", patience)
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.NotAllowed {
		t.Errorf("Up = %v, want NotAllowed", err)
	}
}

// TestRevokedWhileKilled is of a gateway that dies after a revocation is on disk
// and before the node's transport is cut.
func TestRevokedWhileKilled(t *testing.T) {
	gw, node := pair(t)
	established(t, gw, node)
	gw.end()
	r, err := auth.OpenRegistry(gw.store)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Revoke("alice", time.Now()); err != nil {
		t.Fatal(err)
	}
	gw.run()
	wait(t, "the session to end", func() bool { return len(gw.sessions()) == 0 })
	if ids := gw.engine.Device("tnl0").Sessions(); len(ids) != 0 {
		t.Errorf("the data plane still has %v", ids)
	}
}

// TestRevokedMeanwhile: what was granted by rights that were looked at before a
// revocation is not written.
func TestRevokedMeanwhile(t *testing.T) {
	gw, node := pair(t)
	established(t, gw, node)
	g := gw.m.gateway
	g.mu.Lock()
	var p *peerConn
	for _, p = range g.conns {
	}
	g.mu.Unlock()
	record := &control.Record{Role: control.Responder, LocalID: 7, PeerID: p.nodeID, PeerName: "alice"}
	other := &peerConn{g: g, id: 7, node: "alice", nodeID: p.nodeID, serial: g.registry.RevocationSerial()}
	if err := other.Save(record); err != nil {
		t.Fatalf("Save before the revocation: %v", err)
	}
	if _, err := g.registry.Revoke("alice", time.Now()); err != nil {
		t.Fatal(err)
	}
	err := other.Save(record)
	if d, ok := errors.AsType[*control.Denied](err); !ok || d.Result.Cause != wire.CauseRevoked {
		t.Errorf("Save after the revocation = %v, want it denied", err)
	}
}

func TestBranchPrefixReachesTheOthers(t *testing.T) {
	branch := netip.MustParsePrefix("10.20.0.0/16")
	gw := newGatewayDaemon(t)
	gw.run()
	t.Cleanup(gw.end)
	alice := newNodeDaemon(t, "alice")
	alice.run()
	t.Cleanup(alice.end)
	alice.join(gw)
	established(t, gw, alice)
	b := newNodeDaemon(t, "branch")
	b.run()
	t.Cleanup(b.end)
	b.join(gw, branch)
	wait(t, "the branch's prefix at the gateway", func() bool { return slices.Contains(gw.host.Routes("tnl0"), branch) })
	wait(t, "the branch's prefix at alice", func() bool { return slices.Contains(alice.host.Routes("tnl0"), branch) })
	if slices.Contains(b.host.Routes("tnl0"), branch) {
		t.Error("the branch was told its own prefix as a route")
	}
	if err := b.m.Down(t.Context(), "office"); err != nil {
		t.Fatal(err)
	}
	wait(t, "the branch's prefix to go", func() bool { return !slices.Contains(alice.host.Routes("tnl0"), branch) })
}

func TestKilledSessionIsBegunAnew(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	if err := gw.m.KillSession(t.Context(), id[:8], "maintenance"); err != nil {
		t.Fatal(err)
	}
	wait(t, "another session", func() bool {
		tn := node.tunnel()
		return tn.State == "established" && *tn.Session != id
	})
}

// oneAddress is a gateway with one address to lease, which alice has, and bob, who
// wants it.
func oneAddress(t *testing.T) (gw, alice, bob *daemon) {
	t.Helper()
	gw = newGatewayDaemon(t)
	gw.cfg.Networks[0].Pools = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/30")} // one address to lease
	gw.run()
	t.Cleanup(gw.end)
	alice, bob = newNodeDaemon(t, "alice"), newNodeDaemon(t, "bob")
	for _, d := range []*daemon{alice, bob} {
		d.run()
		t.Cleanup(d.end)
	}
	alice.join(gw)
	established(t, gw, alice)
	bob.join(gw)
	return gw, alice, bob
}

func TestPoolExhausted(t *testing.T) {
	_, _, bob := oneAddress(t)
	wait(t, "bob's refusal", func() bool { return bob.tunnel().LastError != nil })
	if tn := bob.tunnel(); tn.State == "established" {
		t.Errorf("bob is established: %+v", tn)
	}
}

func TestPoolOverlapsTheHost(t *testing.T) {
	gw := newGatewayDaemon(t)
	gw.engine, gw.host = &enginetest.Fake{}, hosttest.New()
	gw.host.SetForeign("eth0", netip.MustParsePrefix("10.77.0.7/24"))
	m, err := New(Options{Config: gw.cfg, Store: gw.store, Engine: gw.engine, Host: gw.host, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Run(t.Context()); err == nil {
		t.Error("Run accepted a pool that overlaps the host's address")
	}
}

func TestProblemsAreInStatus(t *testing.T) {
	gw, _ := pair(t)
	gw.host.SetProblems("tnl0", host.Problem{What: "IPv4 forwarding is off", Mended: "sysctl -w net.ipv4.ip_forward=1"})
	st, err := gw.m.Status(t.Context())
	if err != nil || len(st.Problems) != 1 || st.Problems[0].Mend != "sysctl -w net.ipv4.ip_forward=1" {
		t.Errorf("Status = %+v, %v", st.Problems, err)
	}
}

func TestRoutesThatAreNotAccepted(t *testing.T) {
	gw := newGatewayDaemon(t)
	public, lan := netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("192.168.7.0/24")
	gw.run()
	t.Cleanup(gw.end)
	node := newNodeDaemon(t, "alice")
	node.run()
	t.Cleanup(node.end)
	node.host.SetForeign("eth0", netip.MustParsePrefix("192.168.0.0/16"))
	node.join(gw)
	established(t, gw, node)
	gw.end()
	gw.cfg.Networks[0].Routes = []netip.Prefix{public, lan, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.50.0.0/24")}
	gw.run()
	if err := gw.m.KillSession(t.Context(), gw.sessions()[0].Session, "new routes"); err != nil {
		t.Fatal(err)
	}
	wait(t, "the new routes", func() bool { return len(node.tunnel().RefusedRoutes) == 3 })
	if got := node.host.Routes("tnl0"); slices.Contains(got, public) || slices.Contains(got, lan) || !slices.Contains(got, netip.MustParsePrefix("10.50.0.0/24")) {
		t.Errorf("routes = %v; want 10.50.0.0/24 and neither a public prefix nor one of the host's own", got)
	}
}

// ends returns the records of sessions that are over.
func (d *daemon) ends() (all []*endedV2) {
	d.t.Helper()
	err := (&journal{d.store}).each(bucketEnded, func(_ string, b []byte) error {
		e, err := decodeEnd(b)
		all = append(all, e)
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return all
}

func TestEverySessionEndsOnceInTheRecord(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	sid, _ := session.ParseID(id)
	if err := gw.engine.Device("tnl0").SetStats(sid, engine.Stats{RxBytes: 7, TxBytes: 9}); err != nil {
		t.Fatal(err)
	}
	if err := node.m.Down(t.Context(), "office"); err != nil {
		t.Fatal(err)
	}
	wait(t, "the record of the end", func() bool { return len(gw.ends()) == 1 })
	if d, err := gw.m.Session(t.Context(), id); err != nil || d.State != "closed" || d.RxBytes != 7 {
		t.Errorf("Session(%v) = %+v, %v; want it closed", id, d, err)
	}
	if e := gw.ends()[0]; e.Session != sid || e.Node != "alice" || e.Network != "office" || e.Counters.RxBytes != 7 || e.Counters.TxBytes != 9 || e.Cause == "unknown" || e.Cause == "" {
		t.Errorf("record = %+v", e)
	}
	if _, err := node.m.Up(t.Context(), "office", patience); err != nil {
		t.Fatal(err)
	}
	established(t, gw, node)
	if err := gw.m.RevokeNode(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	wait(t, "the second record", func() bool { return len(gw.ends()) == 2 })
	gw.end()
	gw.run()
	if got := gw.ends(); len(got) != 2 {
		t.Errorf("%d records after a restart, want 2: %+v", len(got), got)
	}
}

// TestEndIsRecordedOnceAfterAFailedSave fails the transaction that ends a
// session, as a full disk does, and restarts the gateway.
func TestEndIsRecordedOnceAfterAFailedSave(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	gw.store.FailUpdates(1)
	gw.m.KillSession(t.Context(), id, "test")
	wait(t, "another session", func() bool {
		tn := node.tunnel()
		return tn.State == "established" && *tn.Session != id
	})
	wait(t, "the record of the end", func() bool { return len(gw.ends()) > 0 })
	gw.end()
	gw.run()
	if got := gw.ends(); len(got) != 1 || got[0].Session.String() != id {
		t.Errorf("records = %+v, want one of %v", got, id)
	}
}
