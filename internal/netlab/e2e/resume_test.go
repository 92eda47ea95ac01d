package e2e

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"tunneld/internal/netlab"
)

// TestControlLost loses the control connection alone. No packet may be lost
// with it, and it must come back by itself.
func TestControlLost(t *testing.T) {
	for _, tc := range []struct {
		name string
		lose func(w *world, alice *netlab.Daemon)
	}{
		{"reset", func(w *world, _ *netlab.Daemon) {
			if n := w.net.Wires["nat.wan"].ResetTCP(port); n != 1 {
				w.t.Fatalf("%d control connections were reset, want 1", n)
			}
		}},
		{"half-open", func(w *world, _ *netlab.Daemon) {
			wire := w.net.Wires["nat.wan"]
			wire.DropTCP(port, true)
			w.session("suspended", func(s netlab.SessionStatus) bool { return s.State == "suspended" })
			wire.DropTCP(port, false)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newOffice(t, roadPlan)
			alice := w.node("alice")
			p, s := w.probe("alice"), w.stream("alice")
			before, atGateway := w.established(alice)
			old := w.conns("alice")

			begin := p.Mark()
			tc.lose(w, alice)
			after, _ := w.resumed(alice, atGateway.Resumes+1)
			w.answered(p)
			w.same(before, after)
			if got := p.Since(t.Context(), begin, lateAnswers); got.Lost > 0 {
				t.Errorf("the loss of the control connection alone: %+v, want no packet lost", got)
			}
			for _, c := range w.conns("alice") {
				if slices.Contains(old, c) {
					t.Errorf("the old control connection %v is still there", c)
				}
			}
			w.check(s.Alive(w.patience()))
		})
	}
}

func (w *world) conns(host string) []netlab.Conn {
	w.t.Helper()
	conns, err := w.net.Hosts[host].Conns(port)
	w.check(err)
	return conns
}

// TestPathCut loses everything for a while, control and data.
func TestPathCut(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	p, s := w.probe("alice"), w.stream("alice")
	before, atGateway := w.established(alice)
	w.net.Wires["nat.wan"].Cut()
	w.session("suspended", func(s netlab.SessionStatus) bool { return s.State == "suspended" })
	w.net.Wires["nat.wan"].Restore()
	after, _ := w.resumed(alice, atGateway.Resumes+1)
	w.same(before, after)
	w.answered(p)
	w.check(s.Alive(w.patience()))
}

// TestAddressChanges moves alice, or her NAT, to another address.
func TestAddressChanges(t *testing.T) { mixed(t, testAddressChanges) }

func testAddressChanges(t *testing.T, e engines, short bool) {
	for _, tc := range []struct {
		name   string
		change func(w *world) error
		// lost is how many packets may be on their way to the old address, or
		// leave before the daemon knows.
		lost int
	}{
		{"node", func(w *world) error {
			alice := w.net.Hosts["alice"]
			return errors.Join(alice.SetAddr("eth0", "192.168.1.77/24"), alice.DefaultRoute("192.168.1.1"))
		}, 100},
		{"NAT rebinds", func(w *world) error { return w.net.NATs["nat"].Rebind() }, 40},
		{"NAT outside", func(w *world) error { return w.net.NATs["nat"].SetOutside("198.51.100.1", "198.51.100.77/24") }, 40},
	} {
		if short && tc.name != "node" {
			continue
		}
		t.Run(tc.name, func(t *testing.T) {
			w := newMixedOffice(t, roadPlan, e)
			alice := w.node("alice")
			p, s := w.probe("alice"), w.stream("alice")
			before, atGateway := w.established(alice)
			begin := p.Mark()
			w.check(tc.change(w))
			w.answered(p) // data goes on before control is back
			after, session := w.resumed(alice, atGateway.Resumes+1)
			w.same(before, after)
			w.answered(p)
			if got := p.Since(t.Context(), begin, lateAnswers); got.Lost > tc.lost {
				t.Errorf("stats = %+v, want at most %d lost", got, tc.lost)
			}
			if session.Endpoint == atGateway.Endpoint {
				t.Errorf("the gateway still sends to %s", session.Endpoint)
			}
			w.check(s.Alive(w.patience()))
		})
	}
}

// TestKilled kills a daemon with SIGKILL and starts it at once.
func TestKilled(t *testing.T) { mixed(t, testKilled) }

func testKilled(t *testing.T, e engines, _ bool) {
	for _, who := range []string{"gateway", "node"} {
		t.Run(who, func(t *testing.T) {
			w := newMixedOffice(t, roadPlan+branchPlan, e)
			alice, branch := w.node("alice"), w.node("branch", "--advertise", "10.20.0.0/24")
			p, s := w.probe("alice"), w.stream("alice")
			beforeAlice, _ := w.established(alice)
			beforeBranch, _ := w.established(branch)
			victim := map[string]*netlab.Daemon{"gateway": w.hq, "node": alice}[who]
			boot, begin := w.bootID(victim), p.Mark()

			w.check(victim.Process().Kill9())
			w.start(victim)
			afterAlice, _ := w.established(alice)
			afterBranch, _ := w.established(branch)
			w.answered(p)
			w.same(beforeAlice, afterAlice)
			w.same(beforeBranch, afterBranch)
			// Many times what a restart takes, and less than the 5 s after which
			// WireGuard tries by itself: the handshake came at once.
			if got := p.Since(t.Context(), begin, lateAnswers); got.LongestGap > 4*time.Second {
				t.Errorf("stats = %+v, want no gap of 4 s", got)
			}
			w.ping("server", desk)
			w.check(s.Alive(w.patience()))
			if now := w.bootID(victim); now == boot {
				t.Errorf("boot_id = %s before and after a restart", now)
			}
		})
	}
}

func (w *world) bootID(d *netlab.Daemon) string {
	w.t.Helper()
	s, err := d.Status(w.patience())
	w.check(err)
	return s.BootID
}

// TestBothKilled has nobody left who remembers but the disks.
func TestBothKilled(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	s := w.stream("alice")
	before, _ := w.established(alice)
	w.check(alice.Process().Kill9(), w.hq.Process().Kill9())
	w.start(alice)
	w.start(w.hq)
	after, _ := w.established(alice)
	w.same(before, after)
	w.ping("alice", server)
	w.check(s.Alive(w.patience()))
}

// TestFrozen closes the lid of a laptop for longer than the gateway waits for
// its control connection.
func TestFrozen(t *testing.T) {
	asleep := 25 * time.Second
	if testing.Short() {
		asleep = 8 * time.Second
	}
	if os.Getenv("TUNNELD_LONG") == "1" {
		asleep = 200 * time.Second
	}
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	p := w.probe("alice")
	before, atGateway := w.established(alice)

	w.check(alice.Process().Freeze())
	woken := time.NewTimer(asleep)
	defer woken.Stop()
	w.session("suspended", func(s netlab.SessionStatus) bool { return s.State == "suspended" })
	<-woken.C
	w.check(alice.Process().Thaw())

	after, _ := w.resumed(alice, atGateway.Resumes+1)
	w.answered(p)
	w.same(before, after)
}

// TestSIGTERMSuspends ends each daemon in turn: nothing of it may be left on
// its host, and nothing of the session may be lost.
func TestSIGTERMSuspends(t *testing.T) {
	w := newOffice(t, roadPlan+branchPlan)
	w.node("branch", "--advertise", "10.20.0.0/24")
	alice := w.node("alice")
	before, _ := w.established(alice)

	w.check(alice.Process().Stop())
	w.clean("alice", before.Interface)
	w.session("suspended", func(s netlab.SessionStatus) bool {
		return s.Session == before.Session && s.State == "suspended"
	})
	w.start(alice)
	after, _ := w.established(alice)
	w.same(before, after)

	w.check(w.hq.Process().Stop())
	w.clean("hq", "tnl0")
	w.start(w.hq)
	after, _ = w.established(alice)
	w.same(before, after)
	w.ping("alice", server, desk)
}

// clean looks for what a daemon that ended may have left behind.
func (w *world) clean(host, ifname string) {
	w.t.Helper()
	h := w.net.Hosts[host]
	if h.HasInterface(ifname) {
		w.t.Errorf("%s: interface %s is still there", host, ifname)
	}
	rules, err := h.Rules()
	w.check(err)
	if rules != 0 {
		w.t.Errorf("%s: %d routing rules are still there", host, rules)
	}
	tables, err := h.Run(w.patience(), "", "nft", "list", "tables")
	w.check(err)
	if strings.TrimSpace(tables) != "" {
		w.t.Errorf("%s: nftables are still there: %s", host, tables)
	}
	routes, err := h.Run(w.patience(), "", "ip", "route", "show", "table", "all", "proto", "99")
	w.check(err)
	if strings.TrimSpace(routes) != "" {
		w.t.Errorf("%s: routes are still there: %s", host, routes)
	}
}
