package e2e

import (
	"path/filepath"
	"testing"
	"time"

	"tunneld/internal/netlab"
	"tunneld/internal/netlab/keeper"
)

// TestHandOver restarts daemons whose service manager keeps descriptors, while
// packets flow: a proper restart loses none, a kill at most what was in hand,
// and the node's keypair is the one it was.
func TestHandOver(t *testing.T) {
	w := newStage(t, roadPlan)
	w.hq = w.kept(func() *netlab.Daemon { return w.gateway("hq", "", officeInit...) })
	alice := w.kept(func() *netlab.Daemon { return w.node("alice") })
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
		held, _ := w.established(alice)
		begin := p.Mark()
		w.check(c.end(c.who.Process()))
		w.start(c.who)
		w.answered(p)
		after, _ := w.established(alice)
		w.same(before, after)
		if got := p.Since(t.Context(), begin, lateAnswers); got.Lost > c.most {
			t.Errorf("%s: stats = %+v, want at most %d lost", c.name, got, c.most)
		}
		if since := w.handshake(after).Sub(w.handshake(held)); c.who == alice && since > time.Millisecond*100 { // it is known by its age
			t.Errorf("%s: there was a handshake %v after the one before", c.name, since)
		}
	}
}

// handshake is when the last one was.
func (w *world) handshake(s netlab.TunnelStatus) time.Time {
	w.t.Helper()
	at, err := time.Parse(time.RFC3339, s.Handshake)
	w.check(err)
	return at
}

// kept makes a daemon and starts it again with a service manager behind it.
func (w *world) kept(daemon func() *netlab.Daemon) *netlab.Daemon {
	w.t.Helper()
	d := daemon()
	m, err := keeper.New(filepath.Join(w.t.TempDir(), "notify"))
	w.check(err)
	w.t.Cleanup(func() { m.Close() })
	w.check(d.Process().Stop())
	d.KeepIn(m)
	w.start(d)
	return d
}
