package reference

import (
	"testing"
	"time"

	"tunneld/internal/tunnel/engine"
	"tunneld/internal/tunnel/engine/enginetest"
)

// TestDeadlineStopsTheDataPath tells an engine a deadline and never calls it
// again, as a control plane that is dead: the engine closes the session itself.
func TestDeadlineStopsTheDataPath(t *testing.T) {
	a, b := memPair(t, loopback(t), loopback(t))
	enginetest.Eventually(t, "packets cross", func() bool { return crosses(a.tun, b.tun, aToB(100)) })
	if err := b.SetDeadline(b.session.ID, time.Now().Add(100*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	enginetest.Eventually(t, "the deadline stops packets", func() bool { return !crosses(a.tun, b.tun, aToB(100)) })
	if crosses(b.tun, a.tun, bToA(100)) {
		t.Error("a packet is sent after the deadline")
	}
	before, err := b.Stats(b.session.ID)
	if err != nil || before.RxDropped[engine.CauseDeadline] == 0 || before.TxDropped[engine.CauseDeadline] == 0 {
		t.Errorf("Stats = %+v, %v; want both packets among those dropped", before, err)
	}
	for _, at := range []time.Time{time.Now().Add(time.Hour), {}} {
		if err := b.SetDeadline(b.session.ID, at); err != nil {
			t.Fatal(err)
		}
		if !arrives(a.tun, b.tun, aToB(100)) {
			t.Errorf("no packet crosses with the deadline %v", at)
		}
	}
	past := b.session
	past.Deadline = time.Now().Add(-time.Second)
	if err := b.Add(past); err != nil {
		t.Fatal(err)
	}
	if crosses(a.tun, b.tun, aToB(100)) {
		t.Error("a session added with a past deadline lets packets through")
	}
}
