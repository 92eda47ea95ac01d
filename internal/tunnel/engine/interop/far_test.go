package interop

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
)

// farAddress is where the far end is.
var farAddress = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), farPort)

// TestForeignRoaming moves each end to another address and speaks first from
// there: the other follows, without a handshake of the foreign end's.
func TestForeignRoaming(t *testing.T) {
	t.Parallel()
	testForeignRoaming(t, wireguardGo)
}

func testForeignRoaming(t *testing.T, far far) {
	f := meet(t, far, "native", 1420, func(s *Session) { s.Endpoint = farAddress })
	ping := func(what string, from host, to string) {
		t.Helper()
		if got := from.ping(to, 3); got != 3 {
			t.Errorf("ping %s: %d answers, want 3", what, got)
		}
	}
	ping("before", f.ours.host, "10.1.0.2")
	handshakes := f.run("wg", "show", f.dev, "latest-handshakes")

	f.ours.run("ip", "addr", "del", "192.0.2.1/24", "dev", "wire")
	f.ours.run("ip", "addr", "add", "192.0.2.3/24", "dev", "wire")
	f.ours.call("PathChanged", Args{})
	ping("after we moved", f.ours.host, "10.1.0.2")
	ping("to where we moved", f.host, "10.1.0.1")
	if out, want := f.run("wg", "show", f.dev, "endpoints"), fmt.Sprintf("192.0.2.3:%d", f.port); !strings.Contains(out, want) {
		t.Errorf("the far end sees us at %q, want %s", out, want)
	}
	if now := f.run("wg", "show", f.dev, "latest-handshakes"); now != handshakes {
		t.Errorf("our move cost a handshake: %q, then %q", handshakes, now)
	}

	f.run("ip", "addr", "del", "192.0.2.2/24", "dev", "wire")
	f.run("ip", "addr", "add", "192.0.2.4/24", "dev", "wire")
	ping("after the far end moved", f.host, "10.1.0.1")
	f.ours.await("we see where the far end moved", func(s engine.Stats) bool { return s.Endpoint.Addr() == netip.MustParseAddr("192.0.2.4") })
	ping("to where the far end moved", f.ours.host, "10.1.0.2")
}

// TestForeignPSK changes the preshared key at our end first: until the far end
// has it, too, handshakes succeed with the former.
func TestForeignPSK(t *testing.T) {
	t.Parallel()
	testForeignPSK(t, wireguardGo)
}

func testForeignPSK(t *testing.T, far far) {
	f := meet(t, far, "native", 1420, func(s *Session) { s.Endpoint = farAddress })
	if got := f.ours.ping("10.1.0.2", 1); got != 1 {
		t.Fatal("no answer under the first preshared key")
	}
	shake := func(what string) {
		t.Helper()
		before := f.ours.now().LastHandshake
		f.ours.do("Handshake", Args{})
		f.ours.await(what, func(s engine.Stats) bool { return s.LastHandshake.After(before) })
	}
	next := make([]byte, engine.KeySize)
	next[0] = 9
	f.ours.do("SetPresharedKey", Args{Session: Session{PSK: next}})
	shake("a handshake under the former preshared key")
	f.run("wg", "set", f.dev, "peer", f.peer[0], "preshared-key", keyFile(t, next))
	shake("a handshake under the new one")
	if got := f.ours.ping("10.1.0.2", 3); got != 3 {
		t.Errorf("ping after the change: %d answers, want 3", got)
	}
}

// viaRelay makes our end and a foreign one, with a relay between them.
func viaRelay(t *testing.T, far far, delay time.Duration) (f *foreign, r *process) {
	t.Helper()
	f = meet(t, far, "native", 1420, func(s *Session) { s.Endpoint = netip.MustParseAddrPort(relayOutside) })
	r = f.start("native")
	r.call("Relay", Args{Addr: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), f.port), Delay: delay})
	f.knowsUs("endpoint", relayInside)
	return f, r
}

// TestForeignBothDial has both ends start a handshake at the same moment, at
// several distances: packets pass after two round trips, and no second try is
// needed, which would come after 5 s.
func TestForeignBothDial(t *testing.T) { testForeignBothDial(t, wireguardGo) }

func testForeignBothDial(t *testing.T, far far) {
	for _, delay := range []time.Duration{0, 20 * time.Millisecond, 150 * time.Millisecond, 600 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			if far != kernel {
				t.Parallel()
			}
			f, r := viaRelay(t, far, delay)
			f.ours.call("Collect", Args{})
			r.call("Collect", Args{})
			start := time.Now()
			var both sync.WaitGroup
			for p, to := range map[*process]string{f.ours.process: "10.1.0.2", r: "10.1.0.1"} {
				both.Go(func() {
					if err := p.try("Say", Args{Addr: netip.AddrPortFrom(netip.MustParseAddr(to), pacedPort), Size: 1}); err != nil {
						t.Error(err)
					}
				})
			}
			both.Wait()
			enginetest.Eventually(t, "what both ends said has arrived", func() bool { return f.ours.collected() == 1 && r.collected() == 1 })
			if took := time.Since(start) - 4*delay; took > 4*time.Second {
				t.Errorf("%v more than two round trips until packets pass, want less than a second try", took)
			}
		})
	}
}
