package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tunneld/internal/netlab"
)

// service is tunneld as a service of a real systemd, by the unit that is shipped.
type service struct {
	w *world
	m *netlab.Machine
	*netlab.Daemon
}

// service boots systemd on a host and has tunneld made there from nothing.
func (w *world) service(host, more string, init ...string) *service {
	w.t.Helper()
	m, err := w.net.Hosts[host].Boot(w.patience(), bin, "../../../packaging")
	w.check(err)
	s := &service{w, m, m.Daemon(bin)}
	w.check(s.Init(w.patience(), init...), s.Configure(more))
	w.start(s.Daemon)
	return s
}

// systemctl does one thing with the service.
func (s *service) systemctl(args ...string) string {
	s.w.t.Helper()
	out, err := s.m.Systemctl(s.w.patience(), append(args, "tunneld.service")...)
	s.w.check(err)
	return strings.TrimSpace(out)
}

// property is one of `systemctl show`.
func (s *service) property(name string) string {
	s.w.t.Helper()
	return s.systemctl("show", "--value", "--property="+name)
}

// pid is the process that runs now; it waits until it is another than old.
func (s *service) pid(old int) (pid int) {
	s.w.t.Helper()
	s.w.eventually(fmt.Sprintf("a process after %d", old), func() (ok bool) {
		var err error
		pid, err = s.m.PID(s.w.patience())
		s.w.check(err)
		return pid != 0 && pid != old
	})
	return pid
}

// flowRate is how many packets a second flow each way: what user-space wires and
// daemons with the race detector carry. The benchmark has 10,000.
const flowRate = 500

// flows starts packets from a host to the server and back.
func (w *world) flows(host string, at netip.Addr) (both [2]*netlab.Flow) {
	w.t.Helper()
	from, to := w.net.Hosts[host], w.net.Hosts["server"]
	var errs [2]error
	both[0], errs[0] = from.Flow(to, netip.AddrPortFrom(server, 9), flowRate)
	both[1], errs[1] = to.Flow(from, netip.AddrPortFrom(at, 9), flowRate)
	w.check(errs[:]...)
	for _, f := range both {
		w.check(f.Await(w.patience()))
	}
	return both
}

// TestService runs both ends under a real systemd: it starts them when they are
// ready, keeps what they leave, starts a killed one again, and ends them. While
// packets flow each way a proper restart of either loses none, kill -9 no more
// than each thread had in hand, and neither costs a handshake at either end.
func TestService(t *testing.T) {
	netlab.RequireMachine(t)
	w := newStage(t, roadPlan)
	hq := w.service("hq", "[network.timers]\nhello = \"1s\"\n", officeInit...)
	alice := w.service("alice", "", "--name", "alice")
	w.hq = hq.Daemon
	w.join(w.hq, alice.Daemon, "alice")
	w.ctl(alice.Daemon, "up", office)
	before, gateway := w.established(alice.Daemon)
	for _, s := range []*service{hq, alice} { // what is to be seen is the restart, however slow the machine is
		if state := s.property("ActiveState"); state != "active" {
			t.Errorf("started, and the unit is %s", state)
		}
		_, err := s.Host().Run(w.patience(), "", "ip", "link", "set", "tnl0", "txqueuelen", "60000")
		w.check(err)
	}
	flows := w.flows("alice", netip.MustParseAddr(before.Addresses[0]))
	for _, c := range []struct {
		name string
		who  *service
		end  []string
		most int // packets lost
	}{
		{"node restarted", alice, []string{"restart"}, 0},
		{"gateway restarted", hq, []string{"restart"}, 0},
		{"node killed", alice, []string{"kill", "--signal=KILL"}, handful},
		{"gateway killed", hq, []string{"kill", "--signal=KILL"}, handful},
	} {
		held, heldThere := w.established(alice.Daemon)
		begin, old := [2]int{flows[0].Sent(), flows[1].Sent()}, c.who.pid(0)
		c.who.systemctl(c.end...)
		c.who.pid(old)
		w.check(c.who.WaitReady(w.patience()), flows[0].Await(w.patience()), flows[1].Await(w.patience()))
		after, there := w.established(alice.Daemon)
		w.same(before, after)
		out, outLost := flows[0].Since(t.Context(), begin[0], lateAnswers)
		in, inLost := flows[1].Since(t.Context(), begin[1], lateAnswers)
		t.Logf("%s: %d packets out and %d in, of which %d and %d were lost", c.name, out, in, outLost, inLost)
		if outLost+inLost > c.most {
			t.Errorf("%s: %d and %d packets lost, want at most %d", c.name, outLost, inLost, c.most)
		}
		w.noHandshake(c.name, held, heldThere, after, there)
	}
	if n := hq.property("NRestarts"); n != "1" {
		t.Errorf("systemd has started the gateway again %s times by itself, want 1", n)
	}
	alice.systemctl("stop")
	if w.net.Hosts["alice"].HasInterface(before.Interface) {
		t.Errorf("%s is there after the service was stopped", before.Interface)
	}
	w.session("suspended", func(s netlab.SessionStatus) bool { return s.Session == gateway.Session && s.State == "suspended" })
	w.start(alice.Daemon)
	after, _ := w.established(alice.Daemon)
	w.same(before, after)
	w.check(flows[0].Await(w.patience()), flows[1].Await(w.patience()))
}

// handful is a batch of each of two threads: what one reads from an interface at
// once, and the other from a socket.
const handful = 256 + 32

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

// TestServiceDrains: a stop that has the nodes leave takes longer than systemd
// lets a stop take, and systemd has been asked for that. The keys are in memory
// that is to be locked.
func TestServiceDrains(t *testing.T) {
	netlab.RequireMachine(t)
	w := newStage(t, roadPlan)
	hq := w.service("hq", "[network.timers]\nhello = \"1s\"\n", officeInit...)
	w.hq = hq.Daemon
	hq.systemctl("stop")
	w.edit(w.hq, "\n[gateway]\n", "\n[gateway]\ndrain_on_stop = \"12s\"\n")
	w.start(w.hq)
	alice := w.node("alice")
	before, _ := w.established(alice)
	s, err := w.hq.Status(w.patience())
	w.check(err)
	if k := s.KeyMemory; !k.Locked && !strings.Contains(k.Why, "RLIMIT_MEMLOCK is too low") { // the machine's own limit may be
		t.Errorf("key memory under the unit: %+v, want a file that is locked as far as the limit goes", k)
	}
	begin := time.Now()
	hq.systemctl("stop") // alice has nowhere to go, and is waited for
	if d := time.Since(begin); d < 11*time.Second {
		t.Errorf("the stop took %v, want the 12 s of drain_on_stop, beyond the 10 s of the unit", d)
	}
	if result, code := hq.property("Result"), hq.property("ExecMainStatus"); result != "success" || code != "0" {
		t.Errorf("the stop: result %s, status %s; want success and 0", result, code)
	}
	w.start(w.hq)
	after, _ := w.established(alice)
	w.same(before, after)
}
