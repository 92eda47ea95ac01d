package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tunneld/internal/netlab"
)

// TestTunnelsShareAConnection: two tunnels to one gateway are two sessions in one
// control connection. Each has a life of its own: what ends one leaves the other
// alone, and a cut suspends and resumes both.
func TestTunnelsShareAConnection(t *testing.T) {
	w := newOffice(t, roadPlan, slices.Concat(officeInit, []string{"--network", "lab=10.79.0.0/16"})...)
	alice := w.node("alice")
	w.ctl(alice, "up", "lab")
	if got := w.conns("alice"); len(got) != 1 {
		t.Fatalf("control connections %v, want one", got)
	}
	p := w.probe("alice")
	before, atGateway := w.established(alice)
	lab := func() netlab.TunnelStatus {
		s, err := alice.Status(w.patience())
		w.check(err)
		return s.Tunnel("lab")
	}
	first := lab()
	if first.Session == before.Session || first.Interface == before.Interface {
		t.Fatalf("both tunnels are session %s on %s", first.Session, first.Interface)
	}

	begin := p.Mark()
	w.ctl(w.hq, "session", "kill", first.Session) // the gateway's CDN; the node begins another
	w.eventually("another session in the lab", func() bool {
		s := lab()
		return s.State == netlab.Established && s.Session != first.Session
	})
	second := lab()
	w.ctl(alice, "down", "lab") // the node's CDN
	w.gone(second.Session)
	w.ctl(alice, "up", "lab")
	w.answered(p)
	if got := p.Since(t.Context(), begin, lateAnswers); got.Lost > 0 {
		t.Errorf("the ends of the other session: %+v, want no packet lost in this one", got)
	}
	after, _ := w.established(alice)
	w.same(before, after)
	if after.Resumes != before.Resumes || len(w.conns("alice")) != 1 {
		t.Errorf("resumes %d, were %d; control connections %v", after.Resumes, before.Resumes, w.conns("alice"))
	}
	if out := w.ctl(w.hq, "session", "show", before.Session); strings.Contains(out, "closed") {
		t.Errorf("the story of the session that stayed:\n%s", out)
	}

	third := lab()
	w.net.Wires["nat.wan"].ResetTCP(port)
	again, _ := w.resumed(alice, atGateway.Resumes+1)
	w.same(before, again)
	if s := lab(); s.Session != third.Session || s.Resumes != third.Resumes+1 {
		t.Errorf("after a cut the lab is session %s with %d resumes, was %s with %d", s.Session, s.Resumes, third.Session, third.Resumes)
	}
	w.ping("alice", netip.MustParseAddr("10.79.0.1"), server)
}
