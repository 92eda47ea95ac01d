package e2e

import (
	"path/filepath"
	"testing"
	"time"

	"tunneld/internal/netlab"
	"tunneld/internal/netlab/keeper"
)

// TestHandOver restarts daemons whose service manager keeps descriptors, while
// packets flow: a proper restart loses none, a kill at most what was in hand, and
// neither end makes a handshake. A gateway whose keypairs are lost gets one at
// once.
func TestHandOver(t *testing.T) {
	w := newStage(t, roadPlan)
	var kept *keeper.Manager
	w.hq, kept = w.kept(func() *netlab.Daemon { return w.gateway("hq", "", officeInit...) })
	alice, _ := w.kept(func() *netlab.Daemon { return w.node("alice") })
	p := w.probe("alice")
	before, _ := w.established(alice)
	for _, c := range []struct {
		name string
		who  *netlab.Daemon
		end  func(*netlab.Process) error
		most int // probes lost
	}{
		{"node, stopped", alice, (*netlab.Process).Stop, 0},
		{"gateway, stopped", w.hq, (*netlab.Process).Stop, 0},
		{"node, killed", alice, (*netlab.Process).Kill9, 2},
		{"gateway, killed", w.hq, (*netlab.Process).Kill9, 2},
	} {
		w.answered(p)
		held, heldThere := w.established(alice)
		begin := p.Mark()
		w.check(c.end(c.who.Process()))
		w.start(c.who)
		w.answered(p)
		after, there := w.established(alice)
		w.same(before, after)
		if got := p.Since(t.Context(), begin, lateAnswers); got.Lost > c.most {
			t.Errorf("%s: stats = %+v, want at most %d lost", c.name, got, c.most)
		}
		w.noHandshake(c.name, held, heldThere, after, there)
	}
	held, _ := w.established(alice)
	begin := p.Mark()
	w.check(w.hq.Process().Kill9())
	kept.Forget("memory")
	w.start(w.hq)
	w.answered(p)
	after, _ := w.established(alice)
	w.same(before, after)
	if got := p.Since(t.Context(), begin, lateAnswers); after.Handshake == held.Handshake || got.LongestGap > 4*time.Second {
		t.Errorf("keypairs lost: stats = %+v, the handshake of %q after that of %q; want another, before WireGuard tries by itself", got, after.Handshake, held.Handshake)
	}
}

// noHandshake compares when the last handshake was, as the node and the gateway
// see it. One of them was restarted and knows that by the age of the keypair, the
// other one to the nanosecond.
func (w *world) noHandshake(what string, node netlab.TunnelStatus, gateway netlab.SessionStatus, nodeAfter netlab.TunnelStatus, gatewayAfter netlab.SessionStatus) {
	w.t.Helper()
	if node.Handshake != nodeAfter.Handshake && gateway.Handshake != gatewayAfter.Handshake || node.Handshake == "" {
		w.t.Errorf("%s: the last handshake was at %q and %q, and is at %q and %q for the node and the gateway: there was another",
			what, node.Handshake, gateway.Handshake, nodeAfter.Handshake, gatewayAfter.Handshake)
	}
}

// kept makes a daemon and starts it again with a service manager behind it.
func (w *world) kept(daemon func() *netlab.Daemon) (*netlab.Daemon, *keeper.Manager) {
	w.t.Helper()
	d := daemon()
	m, err := keeper.New(filepath.Join(w.t.TempDir(), "notify"))
	w.check(err)
	w.t.Cleanup(func() { m.Close() })
	w.check(d.Process().Stop())
	d.KeepIn(m)
	w.start(d)
	return d, m
}
