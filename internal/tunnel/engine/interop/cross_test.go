package interop

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"tunneld/internal/secret"
	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
	"tunneld/internal/tunnel/engine/noise"
)

// TestForeignBesideAFlood: a foreign end gets its handshake through while
// somebody floods us with initiations, by the cookie that it is given.
func TestForeignBesideAFlood(t *testing.T) { testForeignBesideAFlood(t, wireguardGo) }

func testForeignBesideAFlood(t *testing.T, far far) {
	f := meet(t, far, "native", 1420, func(s *Session) { s.Endpoint, s.Responder = netip.AddrPort{}, true })
	f.run("ip", "addr", "add", "192.0.2.77/24", "dev", "wire")
	f.run("nft", "add table ip t; add chain ip t i { type filter hook input priority 0 ; }; add rule ip t i ip daddr 192.0.2.2 udp dport 5000 udp length 72 counter")
	public, err := noise.NewStaticKey(secret.New(f.ours.private))
	if err != nil {
		t.Fatal(err)
	}
	besieger := f.start("native")
	besieger.call("Besiege", Args{Listen: netip.MustParseAddrPort("192.0.2.77:0"), Addr: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), f.port), Session: Session{PeerKey: engine.PublicKey(public.Public())}})
	cookies := func() bool { return !strings.Contains(f.run("nft", "list table ip t"), "counter packets 0") }
	enginetest.Eventually(t, "the far end is given a cookie", func() bool {
		f.knowsUs("endpoint", fmt.Sprintf("192.0.2.1:%d", f.port), "persistent-keepalive", "1")
		return cookies()
	})
	f.ours.await("a handshake through the flood", func(s engine.Stats) bool { return !s.LastHandshake.IsZero() })
	if got := f.ping("10.1.0.1", 5, "-W", "5", "-i", "5"); got != 5 {
		t.Errorf("ping beside the flood: %d answers, want 5", got)
	}
}

// Besiege sends initiations of somebody without a session from a.Listen to the
// engine at a.Addr, whose key is a.Session.PeerKey, until the process ends.
func (n *Node) Besiege(a Args, _ *struct{}) error {
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(a.Listen), net.UDPAddrFromAddrPort(a.Addr))
	if err != nil {
		return err
	}
	var private [noise.KeySize]byte
	private[0] = 8
	key, err := noise.NewStaticKey(secret.New(private[:]))
	if err != nil {
		return err
	}
	message, _, err := key.CreateInitiation(nil, noise.NewPeer(noise.PublicKey(a.Session.PeerKey)), 7, 1, time.Now())
	if err != nil {
		return err
	}
	go func() {
		defer c.Close()
		for tick := time.NewTicker(20 * time.Millisecond); ; <-tick.C {
			for range 256 {
				c.Write(message) // what is refused is one less
			}
		}
	}()
	return nil
}

// TestBothDialAtADistance has both ends start a handshake at the same moment,
// at several distances: within two round trips packets pass, and no second try
// is needed.
func TestBothDialAtADistance(t *testing.T) {
	for _, k := range []kinds{{"native", "native"}, {"native", "reference"}, {"reference", "native"}} {
		for _, delay := range []time.Duration{0, 600 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s to %s, %v", k.node, k.gateway, delay), func(t *testing.T) {
				t.Parallel()
				bothDial(t, k, delay)
			})
		}
	}
}

func bothDial(t *testing.T, k kinds, delay time.Duration) {
	ha, hb := newHost(t), newHost(t)
	wire(ha, hb, "wire", "192.0.2.", "2001:db8::")
	node, gateway, relay := ha.start(k.node), hb.start(k.gateway), hb.start("native")
	port := node.engine("192.0.2.1:0")
	gateway.engine(fmt.Sprintf("0.0.0.0:%d", farPort))
	relay.call("Relay", Args{Addr: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port), Delay: delay})
	a, b := pair(node, gateway, "tnl0", 1, relayOutside, func(a, b *end) {
		a.session.Gate, b.session.Gate = engine.Closed, engine.Closed
		b.session.Responder, b.session.Endpoint = false, netip.MustParseAddrPort(relayInside)
	})
	ends := []*end{a, b}
	for _, e := range ends {
		e.do("SetGate", Args{Gate: engine.Open})
	}
	start := time.Now()
	var both sync.WaitGroup
	for _, e := range ends {
		both.Go(func() {
			if err := e.try("Handshake", Args{Device: e.dev, ID: e.session.ID, Fresh: true}); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	for _, e := range ends {
		e.await("a handshake", func(s engine.Stats) bool { return !s.LastHandshake.IsZero() })
	}
	if got := node.ping("10.1.0.2", 3, "-W", "5", "-i", "5") + gateway.ping("10.1.0.1", 3, "-W", "5", "-i", "5"); got != 6 {
		t.Errorf("pings both ways: %d answers, want 6", got)
	}
	if took := time.Since(start) - 2*2*delay; took > 2*2*delay+4*time.Second {
		t.Errorf("handshakes and pings took %v beyond the pings' own time, want less than a second try", took)
	}
}
