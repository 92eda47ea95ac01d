package interop

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
)

func TestRoaming(t *testing.T) { each(t, testRoaming) }

func testRoaming(t *testing.T, k kinds) {
	node, gateway := hosts(t, k)
	_, b := pair(node, gateway, "tnl0", 1, "192.0.2.2:443")
	if got := node.ping("10.1.0.2", 3); got != 3 {
		t.Fatalf("ping: %d answers, want 3", got)
	}
	before := b.now()
	node.run("ip", "addr", "del", "192.0.2.1/24", "dev", "wire")
	node.run("ip", "addr", "add", "192.0.2.3/24", "dev", "wire")
	node.call("PathChanged", Args{})
	node.call("Probe", Args{Device: "tnl0", ID: b.session.ID})
	enginetest.Eventually(t, "the gateway sees the node's new address", func() bool {
		return b.now().Endpoint.Addr() == netip.MustParseAddr("192.0.2.3")
	})
	if got := gateway.ping("10.1.0.1", 3); got != 3 {
		t.Errorf("ping after the move: %d answers, want 3", got)
	}
	if after := b.now(); k.gateway == "reference" && after.LastHandshake != before.LastHandshake {
		t.Error("the move cost a handshake, want none") // of ours it is the proof that the node is there
	}
}

// TestDiallerFollowsRoutes moves the node's preferred source without telling
// the engine: towards the address it was told to speak to, routes decide.
func TestDiallerFollowsRoutes(t *testing.T) { each(t, testDiallerFollowsRoutes) }

func testDiallerFollowsRoutes(t *testing.T, k kinds) {
	node, gateway := hosts(t, k)
	node.run("ip", "addr", "add", "192.0.2.3/24", "dev", "wire")
	_, b := pair(node, gateway, "tnl0", 1, "192.0.2.2:443")
	for _, source := range []string{"192.0.2.3", "192.0.2.1"} {
		node.run("ip", "route", "replace", "192.0.2.2/32", "dev", "wire", "src", source)
		if got := node.ping("10.1.0.2", 3); got != 3 {
			t.Errorf("ping with source %s: %d answers, want 3", source, got)
		}
		enginetest.Eventually(t, "the gateway sees the node at "+source, func() bool {
			return b.now().Endpoint.Addr() == netip.MustParseAddr(source)
		})
	}
}

// TestAnswersFromWhereItWasSpokenTo gives the gateway a second address, which
// its routes do not prefer.
func TestAnswersFromWhereItWasSpokenTo(t *testing.T) { each(t, testAnswersFromWhereItWasSpokenTo) }

func testAnswersFromWhereItWasSpokenTo(t *testing.T, k kinds) {
	node, gateway := hosts(t, k)
	gateway.run("ip", "addr", "add", "192.0.2.5/24", "dev", "wire")
	a, _ := pair(node, gateway, "tnl0", 1, "192.0.2.5:443")
	if got := node.ping("10.1.0.2", 3); got != 3 {
		t.Fatalf("ping: %d answers, want 3", got)
	}
	spoken := netip.MustParseAddrPort("192.0.2.5:443")
	enginetest.Eventually(t, "status is read again", func() bool { return !a.now().LastHandshake.IsZero() })
	if got := a.now().Endpoint; got != spoken {
		t.Errorf("answers come from %v, want %v", got, spoken)
	}
	gateway.call("PathChanged", Args{})
	if got := gateway.ping("10.1.0.1", 1); got != 1 {
		t.Errorf("ping after PathChanged: %d answers, want 1", got)
	}
	enginetest.Eventually(t, "after PathChanged the gateway's routes choose its address", func() bool {
		return a.now().Endpoint == netip.MustParseAddrPort("192.0.2.2:443")
	})
}

// TestSourceVanishes takes away the address that the gateway answers from; the
// engine is not told, and no packet may be lost for it.
func TestSourceVanishes(t *testing.T) { each(t, testSourceVanishes) }

func testSourceVanishes(t *testing.T, k kinds) {
	node, gateway := hosts(t, k)
	gateway.run("ip", "addr", "add", "192.0.2.5/24", "dev", "wire")
	_, b := pair(node, gateway, "tnl0", 1, "192.0.2.5:443")
	if got := node.ping("10.1.0.2", 3); got != 3 {
		t.Fatalf("ping: %d answers, want 3", got)
	}
	gateway.run("ip", "addr", "del", "192.0.2.5/24", "dev", "wire")
	if got := gateway.ping("10.1.0.1", 3); got != 3 {
		t.Errorf("ping from the address that is left: %d answers, want 3", got)
	}
	if b.now().Endpoint.Addr() != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("endpoint of the node = %v, want 192.0.2.1", b.now().Endpoint)
	}
}

// TestGatewayRestart kills the gateway's process: without a word from the node
// nothing passes, with a fresh handshake everything does at once.
func TestGatewayRestart(t *testing.T) { each(t, testGatewayRestart) }

func testGatewayRestart(t *testing.T, k kinds) {
	node, gateway := hosts(t, k)
	a, b := pair(node, gateway, "tnl0", 1, "192.0.2.2:443")
	if got := node.ping("10.1.0.2", 3); got != 3 {
		t.Fatalf("ping: %d answers, want 3", got)
	}
	at := b.now().Endpoint
	gateway.kill()
	again := gateway.host.start(k.gateway)
	again.engine("[::]:443")
	b.process, b.session.Endpoint = again, at
	b.open()
	b.address("tnl0", "10.1.0.2/24", "fd01::2/64")
	if got := again.ping("10.1.0.1", 2); got != 0 {
		t.Errorf("the gateway reached the node without the node's handshake: %d answers, want 0", got)
	}
	if s := b.now(); !s.LastHandshake.IsZero() {
		t.Errorf("the gateway started a handshake: stats = %+v", s)
	}
	a.do("PeerRestarted", Args{})
	if got := again.ping("10.1.0.1", 5); got != 5 {
		t.Errorf("ping after the node's handshake: %d answers, want 5", got)
	}
	if got := node.ping("10.1.0.2", 5); got != 5 {
		t.Errorf("ping back: %d answers, want 5", got)
	}
}

func TestTwoDevicesOnOnePort(t *testing.T) { each(t, testTwoDevicesOnOnePort) }

func testTwoDevicesOnOnePort(t *testing.T, k kinds) {
	node, gateway := hosts(t, k)
	a1, b1 := pair(node, gateway, "tnl0", 1, "192.0.2.2:443")
	a2, b2 := pair(node, gateway, "tnl1", 2, "192.0.2.2:443")
	both := func(what string) {
		t.Helper()
		for _, addr := range []string{"10.1.0.2", "10.2.0.2", "fd01::2", "fd02::2"} {
			if got := node.ping(addr, 3); got != 3 {
				t.Errorf("%s: ping %s: %d answers, want 3", what, addr, got)
			}
		}
		if got := gateway.ping("10.1.0.1", 3) + gateway.ping("10.2.0.1", 3); got != 6 {
			t.Errorf("%s: ping from the gateway: %d answers, want 6", what, got)
		}
	}
	both("both devices")
	if x, y := a1.now().Endpoint.Port(), a2.now().Endpoint.Port(); x != 443 || y != 443 {
		t.Errorf("ports of the gateway = %d, %d, want 443", x, y)
	}
	if x, y := b1.now().Endpoint, b2.now().Endpoint; x != y {
		t.Errorf("endpoints of the node = %v, %v, want one port for both", x, y)
	}
	gateway.call("CloseDevice", Args{Device: "tnl0"})
	if got := node.ping("10.2.0.2", 5); got != 5 {
		t.Errorf("ping while the other device is closed: %d answers, want 5", got)
	}
	b1.open()
	b1.address("tnl0", "10.1.0.2/24", "fd01::2/64")
	gateway.awaitPing("fd01::2") // its own: the kernel is ready for it a moment later
	a1.do("Handshake", Args{Fresh: true})
	both("after one was closed and opened")
	a2.do("Handshake", Args{Fresh: true})
	both("after a fresh handshake of the other")
}

// TestBlockedPeer floods a peer that cannot be reached: the others go on, and
// the device still takes orders.
func TestBlockedPeer(t *testing.T) { each(t, testBlockedPeer) }

func testBlockedPeer(t *testing.T, k kinds) {
	node, gateway := hosts(t, k)
	_, b := pair(node, gateway, "tnl0", 1, "192.0.2.2:443")
	_, nobody := enginetest.NewKey(t)
	blocked := session.NewID()
	b.call("Add", Args{Device: "tnl0", Session: Session{ID: blocked, PeerKey: nobody, AllowedIPs: enginetest.Prefixes("10.1.0.9/32"), Endpoint: netip.MustParseAddrPort("192.0.2.99:1"), Gate: engine.Open}})
	if got := node.ping("10.1.0.2", 3); got != 3 {
		t.Fatalf("ping: %d answers, want 3", got)
	}
	flood := gateway.command("ping", "-n", "-f", "-s", "1200", "10.1.0.9")
	if err := flood.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		flood.Process.Kill()
		flood.Wait()
	}()
	spaced := []string{"-l", "1", "-i", "0.1"}
	if got := node.ping("10.1.0.2", 20, spaced...); got != 20 {
		t.Errorf("ping beside a flood to an unreachable peer: %d answers, want 20", got)
	}
	if got := gateway.ping("10.1.0.1", 20, spaced...); got != 20 {
		t.Errorf("ping from the flooded gateway: %d answers, want 20", got)
	}
	start := time.Now()
	b.call("Remove", Args{Device: "tnl0", ID: blocked})
	b.now()
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("the device answered after %v, want at once", d)
	}
}

// TestLinkFlap sets the interface down and up again: the keys must survive.
// Not every kernel lets wireguard-go notice, so the event that would cost them
// is held back in TestTUNEvents.
func TestLinkFlap(t *testing.T) { each(t, testLinkFlap) }

func testLinkFlap(t *testing.T, k kinds) {
	node, gateway := hosts(t, k)
	_, b := pair(node, gateway, "tnl0", 1, "192.0.2.2:443")
	if got := node.ping("10.1.0.2", 3); got != 3 {
		t.Fatalf("ping: %d answers, want 3", got)
	}
	before := b.now().LastHandshake
	gateway.run("ip", "link", "set", "tnl0", "down")
	node.ping("10.1.0.2", 3)
	gateway.run("ip", "link", "set", "tnl0", "up")
	if got := node.ping("10.1.0.2", 3); got != 3 {
		t.Errorf("ping after the link flapped: %d answers, want 3", got)
	}
	if after := b.now().LastHandshake; !after.Equal(before) {
		t.Errorf("the flap cost a handshake: %v, then %v", before, after)
	}
}

func TestOpenRefusals(t *testing.T) { ofEach(t, testOpenRefusals) }

func testOpenRefusals(t *testing.T, kind string) {
	h := newHost(t)
	h.run("ip", "link", "add", "pair0", "type", "veth", "peer", "name", "pair1")
	key, _ := enginetest.NewKey(t)
	open := func(dev string, wrap ...string) error {
		p := h.start(kind, wrap...)
		p.engine("0.0.0.0:0")
		return p.try("Open", Args{Device: dev, MTU: 1420, Key: key})
	}
	p := h.start(kind)
	p.engine("0.0.0.0:0")
	p.call("Open", Args{Device: "held", MTU: 1420, Key: key})
	for name, c := range map[string]struct {
		err  error
		want error
		name string
	}{
		"no TUN":        {open("pair0"), engine.ErrInterfaceTaken, "pair0"},
		"another's TUN": {open("held"), engine.ErrInterfaceTaken, "held"},
		"no device":     {open("tnl0", "unshare", "-m", "sh", "-c", `mount -t tmpfs none /dev/net && exec "$0"`), engine.ErrNoTUN, "modprobe tun"},
		"no capability": {open("tnl0", "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"), engine.ErrNotPermitted, "tnl0"},
	} {
		if !errorIs(c.err, c.want) || !strings.Contains(c.err.Error(), c.name) {
			t.Errorf("%s: Open = %v, want %v naming %s", name, c.err, c.want, c.name)
		}
	}
	for _, bad := range []string{"", "sixteen-octets-x"} {
		if err := p.try("Open", Args{Device: bad, MTU: 1420, Key: key}); err == nil || !strings.Contains(err.Error(), "1 to 15 octets") {
			t.Errorf("Open of interface %q = %v, want an error with the bounds", bad, err)
		}
	}
	if err := p.try("Open", Args{Device: "tnl9", MTU: 60, Key: key}); err == nil || !strings.Contains(err.Error(), "MTU 60") {
		t.Errorf("Open with an MTU of 60 = %v, want an error that names it", err)
	}
	if out := p.run("ip", "-o", "link", "show", "held"); !strings.Contains(out, "mtu 1420") {
		t.Errorf("interface = %q, want mtu 1420", out)
	}
	p.call("CloseDevice", Args{Device: "held"})
	if out, err := p.command("ip", "link", "show", "held").CombinedOutput(); err == nil {
		t.Errorf("after Close the interface is still there: %s", out)
	}
	if err := p.try("Leaks", Args{}); err != nil {
		t.Error(err)
	}
}

// TestNoLeak closes an engine in the middle of traffic.
func TestNoLeak(t *testing.T) { each(t, testNoLeak) }

func testNoLeak(t *testing.T, k kinds) {
	node, gateway := hosts(t, k)
	a, _ := pair(node, gateway, "tnl0", 1, "192.0.2.2:443")
	flood := node.command("ping", "-n", "-f", "10.1.0.2")
	if err := flood.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		flood.Process.Kill()
		flood.Wait()
	}()
	enginetest.Eventually(t, "packets flow", func() bool { return a.now().RxPackets > 100 })
	a.do("Handshake", Args{}) // postponed: less than 5 s since the first
	for _, p := range []*process{node, gateway} {
		p.call("Close", Args{})
		if err := p.try("Leaks", Args{}); err != nil {
			t.Errorf("after Close on %s: %v", p.name, err)
		}
	}
	if _, err := os.Stat("/sys/class/net/tnl0"); err == nil {
		t.Error("an interface of the test is in the namespace of the test")
	}
}

// TestInterfaceVanishes removes the interface under the engine, which says so
// and lets go of it.
func TestInterfaceVanishes(t *testing.T) { each(t, testInterfaceVanishes) }

func testInterfaceVanishes(t *testing.T, k kinds) {
	node, gateway := hosts(t, k)
	a, _ := pair(node, gateway, "tnl0", 1, "192.0.2.2:443")
	if got := node.ping("10.1.0.2", 3); got != 3 {
		t.Fatalf("ping: %d answers, want 3", got)
	}
	node.run("ip", "link", "del", "tnl0")
	enginetest.Eventually(t, "the engine says that the interface is gone", func() bool {
		return errorIs(node.try("Stats", Args{Device: "tnl0", ID: a.session.ID}), engine.ErrClosed)
	})
	node.call("CloseDevice", Args{Device: "tnl0"})
	a.open() // again, under the same name
	a.address("tnl0", "10.1.0.1/24", "fd01::1/64")
	if got := node.ping("10.1.0.2", 3); got != 3 {
		t.Errorf("ping through the new interface: %d answers, want 3", got)
	}
	if err := node.try("Leaks", Args{}); err != nil {
		t.Error(err)
	}
}
