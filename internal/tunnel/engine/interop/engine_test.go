package interop

import (
	"fmt"
	"testing"
	"time"

	"tunneld/internal/tunnel/engine"
)

func TestPing(t *testing.T) {
	each(t, func(t *testing.T, k kinds) {
		for _, outer := range []string{"192.0.2.2:443", "[2001:db8::2]:443"} {
			node, gateway := hosts(t, k)
			a, b := pair(node, gateway, "tnl0", 1, outer)
			const n, payload = 5, 100
			if got := node.ping("10.1.0.2", n, "-s", fmt.Sprint(payload)); got != n {
				t.Errorf("ping IPv4: %d answers, want %d", got, n)
			}
			if got := gateway.ping("fd01::1", n, "-s", fmt.Sprint(payload)); got != n {
				t.Errorf("ping IPv6: %d answers, want %d", got, n)
			}
			bytes := uint64(n * (20 + 8 + payload + 40 + 8 + payload))
			for _, e := range []*end{a, b} {
				s := e.now()
				if s.RxPackets != 2*n || s.TxPackets != 2*n || s.RxBytes != bytes || s.TxBytes != bytes || s.RxDropped.Total()+s.TxDropped.Total() != 0 {
					t.Errorf("stats of %s = %+v, want %d packets, %d bytes each way, none dropped", e.name, s, 2*n, bytes)
				}
				if s.LastHandshake.IsZero() || !s.Endpoint.IsValid() {
					t.Errorf("stats of %s = %+v, want handshake and endpoint", e.name, s)
				}
			}
		}
	})
}

func TestGate(t *testing.T) { each(t, testGate) }

func testGate(t *testing.T, k kinds) {
	node, gateway := hosts(t, k)
	a, b := pair(node, gateway, "tnl0", 1, "192.0.2.2:443", func(_, b *end) { b.session.Gate = engine.Closed })
	const n = 3
	passes := func(what string, want int) {
		t.Helper()
		if got := node.ping("10.1.0.2", n); got != want {
			t.Errorf("ping %s: %d answers, want %d", what, got, want)
		}
	}
	passes("into a closed gate", 0)
	if x, y := a.now(), b.now(); !x.LastHandshake.IsZero() || !y.LastHandshake.IsZero() || y.RxDropped.Total() != 0 {
		t.Errorf("stats of two ends of which one is closed = %+v, %+v, want no handshake", x, y)
	}
	b.do("SetGate", Args{Gate: engine.Quarantined})
	a.do("Handshake", Args{Fresh: true})
	a.await("handshake into quarantine", func(s engine.Stats) bool { return !s.LastHandshake.IsZero() })
	b.await("what waited is dropped", func(s engine.Stats) bool { return s.RxDropped[engine.CauseGate] == n })
	passes("into quarantine", 0)
	b.await("packets are dropped", func(s engine.Stats) bool { return s.RxDropped[engine.CauseGate] == 2*n && s.RxPackets == 0 })
	b.do("SetGate", Args{Gate: engine.Open})
	passes("through an open gate", n)
	a.do("SetGate", Args{Gate: engine.Quarantined})
	passes("out of quarantine", 0)
	if got := gateway.ping("10.1.0.1", n); got != 0 {
		t.Errorf("ping back into quarantine: %d answers, want 0", got)
	}
	if s := a.now(); s.RxDropped[engine.CauseGate] != n || s.TxDropped[engine.CauseGate] != n {
		t.Errorf("stats in quarantine = %+v, want %d dropped each way", s, n)
	}
	a.do("SetGate", Args{Gate: engine.Open})

	before := b.now()
	b.do("SetGate", Args{Gate: engine.Closed})
	a.do("Handshake", Args{Fresh: true})
	passes("into a gate closed again", 0)
	if after := b.now(); !after.LastHandshake.Equal(before.LastHandshake) {
		t.Error("a closed gate answered a handshake")
	}
}

// TestHandshakeAtOnce asks for a handshake right after a session was added, as
// the control plane does, with a keepalive that wants one, too.
func TestHandshakeAtOnce(t *testing.T) { each(t, testHandshakeAtOnce) }

func testHandshakeAtOnce(t *testing.T, k kinds) {
	node, gateway := hosts(t, k)
	a, _ := pair(node, gateway, "tnl0", 1, "192.0.2.2:443", func(a, b *end) {
		a.session.Gate, b.session.Gate = engine.Closed, engine.Quarantined
	})
	a.do("Remove", Args{})
	a.session.Gate, a.session.Keepalive = engine.Open, 25*time.Second
	start := time.Now()
	a.call("Add", Args{Device: "tnl0", Session: a.session})
	a.do("Handshake", Args{})
	a.await("a handshake", func(s engine.Stats) bool { return !s.LastHandshake.IsZero() })
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("the first handshake took %v, want no second try after 5 s", took)
	}
}

// TestDirectionAndRate lets packets through one way, and then not too many.
func TestDirectionAndRate(t *testing.T) { ofEach(t, testDirectionAndRate) }

func testDirectionAndRate(t *testing.T, kind string) {
	node, gateway := hosts(t, kinds{kind, kind})
	a, b := pair(node, gateway, "tnl0", 1, "192.0.2.2:443", func(a, _ *end) { a.session.Direction = engine.ReceiveOnly })
	const n = 3
	if got := gateway.ping("10.1.0.1", n); got != 0 {
		t.Errorf("ping an end that only receives: %d answers, want 0", got)
	}
	a.do("Handshake", Args{}) // empty packets do not ask for a direction
	a.await("requests come, answers do not leave", func(s engine.Stats) bool {
		return s.RxPackets >= n && s.TxDropped[engine.CauseDirection] == s.RxPackets
	})
	a.do("SetDirection", Args{Direction: engine.SendOnly})
	before := a.now()
	if got := node.ping("10.1.0.2", n); got != 0 {
		t.Errorf("ping from an end that only sends: %d answers, want 0", got)
	}
	if s := a.now(); s.TxPackets != before.TxPackets+n || s.RxDropped[engine.CauseDirection] != n {
		t.Errorf("stats of an end that only sends = %+v, want %d answers dropped", s, n)
	}
	a.do("SetDirection", Args{Direction: engine.Duplex})
	if got := node.ping("10.1.0.2", n); got != n {
		t.Errorf("ping both ways: %d answers, want %d", got, n)
	}
	b.do("SetRates", Args{Rx: engine.Rate{BytesPerSecond: 1, Burst: 2 * 1028}})
	if got := node.ping("10.1.0.2", n, "-s", "1000"); got != 2 {
		t.Errorf("ping into a bucket of two packets: %d answers, want 2", got)
	}
	if s := b.now(); s.RxDropped[engine.CauseRate] != 1 {
		t.Errorf("stats = %+v, want one packet too many", s)
	}
}
