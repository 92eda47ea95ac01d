package e2e

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"tunneld/internal/netlab"
)

// silent checks that nothing passes any more.
func (w *world) silent(p *netlab.Probe) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 300*time.Millisecond)
	defer cancel()
	if d, err := p.WaitAnswer(ctx, p.Mark()); err == nil {
		w.t.Errorf("a packet passed %v later", d)
	}
}

// over checks that hq has ended a session already: it answers revoke and kill
// when they have taken effect, which leaves nothing to wait for.
func (w *world) over(id string) {
	w.t.Helper()
	list, err := w.hq.Sessions(w.patience())
	w.check(err)
	if slices.ContainsFunc(list, func(s netlab.SessionStatus) bool { return s.Session == id }) {
		w.t.Errorf("session %s has not ended: %+v", id, list)
	}
}

func TestRevoke(t *testing.T) {
	w := newOffice(t, roadPlan+branchPlan)
	alice := w.node("alice")
	w.node("branch")
	p := w.probe("alice")
	before, _ := w.established(alice)

	w.ctl(w.hq, "node", "revoke", "alice")
	w.over(before.Session)
	w.silent(p)
	exit := w.refused(alice, 5, "up", office)
	if !strings.Contains(exit.Stderr, "revoked") {
		t.Errorf("up of a revoked node says %q, want the word revoked", exit.Stderr)
	}
	w.ping("branch", server) // nobody else is concerned

	w.check(w.hq.Process().Kill9()) // and it is not forgotten
	w.start(w.hq)
	w.refused(alice, 5, "up", office)
	w.refused(w.hq, 4, "node", "revoke", "nobody")
}

func TestSessionKill(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	before, _ := w.established(alice)
	w.ctl(w.hq, "session", "kill", before.Session, "--reason", "too loud")
	w.over(before.Session)
	w.refused(w.hq, 4, "session", "kill", before.Session) // it ends once

	ended := 0
	for line := range strings.Lines(w.ctl(w.hq, "--json", "events")) {
		var e struct{ Event, Session, Cause string }
		w.check(json.Unmarshal([]byte(line), &e))
		if e.Session == before.Session && strings.Contains(e.Cause, "too loud") {
			ended++
		}
	}
	if ended != 1 {
		t.Errorf("%d events tell of the end of session %s with its reason, want 1", ended, before.Session)
	}
	w.ctl(alice, "up", office) // a new one may come
	after, _ := w.established(alice)
	w.renewed(before, after)
}

// TestDownIsRemembered takes a tunnel down; it stays so across restarts of
// either daemon, until it is taken up.
func TestDownIsRemembered(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	before, _ := w.established(alice)
	w.ctl(alice, "down", office)
	w.gone(before.Session)
	w.isDown(alice, before.Interface)
	w.ctl(alice, "down", office) // again: nothing to do

	w.check(alice.Process().Kill9(), w.hq.Process().Kill9())
	w.start(w.hq)
	w.start(alice)
	w.isDown(alice, before.Interface)
	w.gone(before.Session)

	w.ctl(alice, "up", office)
	after, _ := w.established(alice)
	w.renewed(before, after)
	w.ctl(alice, "up", office) // again: nothing to do
	again, _ := w.established(alice)
	w.same(after, again)

	w.check(alice.Process().Stop()) // and up is remembered
	w.start(alice)
	again, _ = w.established(alice)
	w.same(after, again)
}

func (w *world) isDown(d *netlab.Daemon, ifname string) {
	w.t.Helper()
	s, err := d.Status(w.patience())
	w.check(err)
	if tunnel := s.Tunnel(office); tunnel.State == netlab.Established || tunnel.Name != office {
		w.t.Errorf("tunnel = %+v, want it down", tunnel)
	}
	if d.Host().HasInterface(ifname) {
		w.t.Errorf("interface %s is there although the tunnel is down", ifname)
	}
}

func TestLeave(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	before, _ := w.established(alice)
	w.ctl(alice, "leave", office)
	w.gone(before.Session)
	if d := alice.Host(); d.HasInterface(before.Interface) {
		t.Errorf("interface %s is there after leave", before.Interface)
	}
	w.refused(alice, 4, "up", office)
	w.check(alice.Process().Stop())
	w.start(alice)
	w.refused(alice, 4, "up", office) // forgotten for good
	w.refused(alice, 4, "leave", office)
}

// TestInviteIsGoodOnce enrols one node with a code, and only that one.
func TestInviteIsGoodOnce(t *testing.T) {
	w := newOffice(t, gatewayPlan+branchPlan+"\nalice.eth0 198.51.100.2/24 -- inet.alice 198.51.100.1/24\nalice default 198.51.100.1\n")
	code := w.ctl(w.hq, "invite", "alice")
	if strings.Count(code, "\n") != 1 {
		t.Errorf("invite prints %q, want one line", code)
	}
	alice, branch := w.plain("alice"), w.plain("branch")
	_, err := branch.CtlInput(w.patience(), code, "join", "-")
	if err == nil || !strings.Contains(err.Error(), "alice") || !strings.Contains(err.Error(), "branch") {
		t.Errorf("join with another node's invite: %v, want both names", err)
	}
	_, err = alice.CtlInput(w.patience(), code, "join", "-")
	w.check(err)
	w.ctl(alice, "up", office)
	w.ping("alice", server)
}

func TestNoDaemon(t *testing.T) {
	w := newOffice(t, gatewayPlan)
	w.check(w.hq.Process().Stop())
	w.refused(w.hq, 3, "status")
}
