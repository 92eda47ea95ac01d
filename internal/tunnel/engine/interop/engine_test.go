package interop

import (
	"fmt"
	"testing"

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
				if s.RxPackets != 2*n || s.TxPackets != 2*n || s.RxBytes != bytes || s.TxBytes != bytes || s.Dropped != 0 {
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
	if got := node.ping("10.1.0.2", n); got != 0 {
		t.Errorf("ping into a closed gate: %d answers, want 0", got)
	}
	s := b.now()
	if s.RxPackets != 0 || s.Dropped != n || s.LastHandshake.IsZero() {
		t.Errorf("stats behind a closed gate = %+v, want %d dropped, none received, a handshake", s, n)
	}
	b.do("SetGate", Args{Gate: engine.Open})
	if got := node.ping("10.1.0.2", n); got != n {
		t.Errorf("ping through an open gate: %d answers, want %d", got, n)
	}
	a.do("SetGate", Args{Gate: engine.Quarantined})
	if got := node.ping("10.1.0.2", n); got != 0 {
		t.Errorf("ping out of quarantine: %d answers, want 0", got)
	}
	if got := gateway.ping("10.1.0.1", n); got != 0 {
		t.Errorf("ping into quarantine: %d answers, want 0", got)
	}
	if s := a.now(); s.Dropped != 2*n {
		t.Errorf("dropped in quarantine = %d, want %d", s.Dropped, 2*n)
	}
}
