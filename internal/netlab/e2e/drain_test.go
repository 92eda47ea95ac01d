package e2e

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"tunneld/internal/netlab"
)

// secondPlan is another gateway elsewhere.
const secondPlan = `
	hq2.eth0 192.0.2.2/24 -- inet.hq2 192.0.2.1/24
	hq2 default 192.0.2.1
`

// newTwoGateways makes a laboratory with two gateways, each with a network
// office, and alice, whose one tunnel names both.
func newTwoGateways(t *testing.T) (w *world, hq2, alice *netlab.Daemon) {
	t.Helper()
	w = newOffice(t, roadPlan+secondPlan)
	hq2 = w.gateway("hq2", "", "--name", "hq2", "--public", "192.0.2.2:443", "--network", "office=10.78.0.0/16,fd78::/64")
	alice = w.plain("alice")
	for name, gw := range map[string]*netlab.Daemon{"first": w.hq, "second": hq2} {
		code := w.ctl(gw, "invite", "alice")
		_, err := alice.CtlInput(w.patience(), code, "join", "-", "--as", name)
		w.check(err)
		w.ctl(alice, "down", name)
	}
	w.check(alice.Process().Stop())
	w.check(alice.Configure("[[tunnel]]\nname = \"office\"\ngateways = [\"203.0.113.1:443\", \"192.0.2.2:443\"]\n"))
	w.start(alice)
	w.ctl(alice, "up", office)
	return w, hq2, alice
}

// at waits until the node's session is with the gateway whose pool has that
// prefix, and carries packets.
func (w *world) at(d *netlab.Daemon, prefix string) netlab.TunnelStatus {
	w.t.Helper()
	s, err := d.WaitTunnel(w.patience(), office, "established with addresses in "+prefix, func(s netlab.TunnelStatus) bool {
		return s.State == netlab.Established && len(s.Addresses) > 0 && strings.HasPrefix(s.Addresses[0], prefix)
	})
	w.check(err)
	w.ctl(d, "up", office) // returns when packets flow
	return s
}

// TestDrain has a gateway send its nodes to the other one of theirs, refuse what
// is new, and take them again when it stays after all.
func TestDrain(t *testing.T) {
	w, hq2, alice := newTwoGateways(t)
	w.at(alice, "10.77.")
	w.ctl(w.hq, "drain", "--to", "192.0.2.2:443", "--over", "500ms")
	w.at(alice, "10.78.")
	if list, err := w.hq.Sessions(w.patience()); err != nil || len(list) != 0 {
		t.Errorf("sessions of the gateway that drains: %+v, %v, want none", list, err)
	}
	if out := w.ctl(w.hq, "status"); !strings.Contains(out, "nodes go to 192.0.2.2:443, 0 sessions are left") {
		t.Errorf("status of the gateway that drains:\n%s", out)
	}
	for what, d := range map[string]*netlab.Daemon{"drain-begun": w.hq, "gateway-drains: moves to 192.0.2.2:443": alice, "tunnel-moved": alice} {
		if !w.remembers(d, what) {
			t.Errorf("%v does not remember %q: %q", d, what, w.events(d))
		}
	}

	w.ctl(alice, "down", office) // the first in its list is asked first, and names the other
	w.ctl(alice, "up", office)
	w.at(alice, "10.78.")
	w.ctl(w.hq, "drain", "--cancel")
	w.ctl(hq2, "drain")
	w.at(alice, "10.77.")
	w.check(w.hq.Process().Stop()) // a restart forgets a drain
	w.ctl(hq2, "drain", "--cancel")
}

// TestDrainWithoutAnother: a node that has nowhere to go keeps its session, over
// the gateway's restart, and nothing new begins meanwhile.
func TestDrainWithoutAnother(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	before, _ := w.established(alice)
	w.ctl(w.hq, "drain", "--to", "192.0.2.2:443", "--over", "0s")
	w.eventually("words about the drain", func() bool { return strings.Contains(w.ctl(alice, "status"), "waits for this one") })
	w.ping("alice", server)
	w.net.Wires["nat.wan"].ResetTCP(port) // a resume is no new connection, and is told again
	w.resumed(alice, 1)
	w.eventually("words about the drain after a resume", func() bool { return strings.Contains(w.ctl(alice, "status"), "waits for this one") })

	w.check(w.hq.Process().Stop())
	w.start(w.hq)
	after, _ := w.established(alice)
	w.same(before, after)
	if out := w.ctl(alice, "status"); strings.Contains(out, "waits for this one") {
		t.Errorf("after the gateway's restart the node still says:\n%s", out)
	}

	w.ctl(w.hq, "drain")
	w.ctl(alice, "down", office)
	_, err := alice.Ctl(w.patience(), "up", office, "--wait", "1s")
	if err == nil || !strings.Contains(err.Error(), "the gateway is about to go") {
		t.Errorf("up while the gateway drains: %v, want an error that says so", err)
	}
	w.ctl(w.hq, "drain", "--cancel")
	w.ctl(alice, "up", office)
}

// drainsOnStop has hq let its nodes leave when it is to stop.
func (w *world) drainsOnStop(wait string) {
	w.t.Helper()
	w.reconfigured("\n[gateway]\n", "\n[gateway]\ndrain_on_stop = \""+wait+"\"\n")
}

func (w *world) signal(d *netlab.Daemon, s syscall.Signal) {
	w.t.Helper()
	w.check(syscall.Kill(d.Process().PID(), s))
}

// TestDrainOnStop: SIGTERM has the node go to the other gateway of its, and the
// first one ends in order when nobody is left.
func TestDrainOnStop(t *testing.T) {
	w, _, alice := newTwoGateways(t)
	w.ctl(alice, "down", office)
	w.drainsOnStop("6s")
	w.ctl(alice, "up", office)
	w.at(alice, "10.77.")
	w.signal(w.hq, syscall.SIGTERM)
	w.at(alice, "10.78.")
	w.check(w.hq.Process().Wait(w.patience())) // with status 0
	if !w.remembers(alice, "tunnel-moved") {
		t.Errorf("events of the node: %q, want that it moved", w.events(alice))
	}
	w.ping("alice", netip.MustParseAddr("10.78.0.1"))
}

// TestDrainOnStopWithoutAnother: a node that has nowhere to go is waited for. A
// second signal ends that wait at once, SIGINT never waits, and the session
// outlives both.
func TestDrainOnStopWithoutAnother(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	w.drainsOnStop("1h")
	before, _ := w.established(alice)
	w.signal(w.hq, syscall.SIGTERM)
	w.eventually("the drain", func() bool { return strings.Contains(w.ctl(w.hq, "status"), "draining since") })
	w.eventually("the node to wait", func() bool { return strings.Contains(w.ctl(alice, "status"), "waits for this one") })
	w.ping("alice", server)
	w.signal(w.hq, syscall.SIGTERM)
	if err := w.hq.Process().Wait(w.patience()); err == nil {
		t.Error("ended at once by a second signal, with status 0")
	}
	w.start(w.hq)
	after, _ := w.established(alice)
	w.same(before, after)

	w.signal(w.hq, syscall.SIGTERM)
	w.eventually("the drain", func() bool { return strings.Contains(w.ctl(w.hq, "status"), "draining since") })
	w.ctl(w.hq, "drain", "--cancel") // ends the wait, and so the daemon
	w.check(w.hq.Process().Wait(w.patience()))
	w.start(w.hq)
	w.established(alice)
	w.signal(w.hq, syscall.SIGINT)
	w.check(w.hq.Process().Wait(w.patience()))
	w.start(w.hq)
	after, _ = w.established(alice)
	w.same(before, after)
}
