package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"tunneld/internal/netlab"
)

// newTimedOffice is newOffice whose network has more timers.
func newTimedOffice(t *testing.T, timers string) *world {
	t.Helper()
	w := newStage(t, roadPlan)
	w.hq = w.net.Hosts["hq"].Daemon(bin, "node")
	w.check(w.hq.Init(w.patience(), officeInit...), w.hq.Configure("[network.timers]\nhello = \"1s\"\n"+timers+"\n"), w.hq.Configure(dataSection(w.engines.gateway, "")))
	w.start(w.hq)
	return w
}

// recorded reports whether a daemon remembers an event of a session whose cause
// says what.
func (w *world) recorded(d *netlab.Daemon, kind, session, what string) bool {
	w.t.Helper()
	for line := range strings.Lines(w.ctl(d, "--json", "events")) {
		var e struct{ Event, Session, Cause string }
		w.check(json.Unmarshal([]byte(line), &e))
		if e.Event == kind && e.Session == session && strings.Contains(e.Cause, what) {
			return true
		}
	}
	return false
}

// eventually waits until cond holds.
func (w *world) eventually(what string, cond func() bool) {
	w.t.Helper()
	patience := w.patience()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-patience.Done():
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// tunnel is the office as a node shows it.
func (w *world) tunnel(d *netlab.Daemon) netlab.TunnelStatus {
	w.t.Helper()
	s, err := d.Status(w.patience())
	w.check(err)
	return s.Tunnel(office)
}

// TestAbsoluteEndsASession: the gateway ends a session that has lived long
// enough, warned of before, and the node begins another at once.
func TestAbsoluteEndsASession(t *testing.T) {
	w := newTimedOffice(t, `absolute = "3s"`)
	alice := w.node("alice")
	before := w.tunnel(alice)
	w.eventually("another session", func() bool {
		after := w.tunnel(alice)
		return after.State == netlab.Established && after.Session != before.Session
	})
	for _, d := range []*netlab.Daemon{w.hq, alice} {
		if !w.recorded(d, "session-closed", before.Session, "lived as long as it may") {
			t.Errorf("%v has no record of the end with its cause", d)
		}
		if !w.recorded(d, "session-expiring", before.Session, "absolute") {
			t.Errorf("%v was not warned", d)
		}
	}
}

// TestIdleEndsASession: packets keep a session, silence ends it until up.
func TestIdleEndsASession(t *testing.T) {
	w := newTimedOffice(t, `idle = "2s"`)
	alice := w.node("alice")
	p := w.probe("alice")
	before := w.tunnel(alice)
	for start := time.Now(); time.Since(start) < 5*time.Second; {
		w.answered(p)
	}
	if now := w.tunnel(alice); now.Session != before.Session {
		t.Errorf("session %s, want %s: packets passed all the time", now.Session, before.Session)
	}
	w.check(p.Close())
	w.gone(before.Session)
	w.eventually("the node to know", func() bool { return w.tunnel(alice).Session == "" })
	if !w.recorded(w.hq, "session-closed", before.Session, "no packet passed") {
		t.Error("the gateway has no record of the end with its cause")
	}
	w.ctl(alice, "up", office)
	w.renewed(before, w.tunnel(alice))
}

// TestSuspendAndResume holds a session: nothing passes, nothing is lost.
func TestSuspendAndResume(t *testing.T) {
	w := newOffice(t, roadPlan)
	alice := w.node("alice")
	p := w.probe("alice")
	before, _ := w.established(alice)

	w.ctl(alice, "suspend", office)
	w.silent(p)
	w.eventually("the gateway to hold it too", func() bool {
		list, err := w.hq.Sessions(w.patience())
		w.check(err)
		return len(list) == 1 && list[0].State == "suspended" && list[0].Session == before.Session
	})
	w.ctl(alice, "suspend", office) // again: nothing to do
	w.check(alice.Process().Kill9())
	w.start(alice)
	w.eventually("the restarted node to hold it", func() bool { return w.tunnel(alice).State == "suspended" })
	w.silent(p)

	w.ctl(alice, "resume", office)
	w.answered(p)
	after, _ := w.established(alice)
	w.same(before, after)
	w.refused(alice, 4, "suspend", "nowhere")
}

// TestProofsCostNothing: a node that must prove itself often does so beside the
// transport in use, and no packet notices.
func TestProofsCostNothing(t *testing.T) {
	w := newTimedOffice(t, `reauth = "3s"`)
	alice := w.node("alice")
	p := w.probe("alice")
	before, _ := w.established(alice)
	from := p.Mark()
	w.eventually("two more proofs", func() bool { return w.tunnel(alice).Resumes >= before.Resumes+2 })
	if s := p.Since(w.patience(), from, lateAnswers); s.Lost > 0 {
		t.Errorf("%+v: %d packets were lost, want none", s, s.Lost)
	}
	after, _ := w.established(alice)
	w.same(before, after)
}
