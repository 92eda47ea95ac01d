package e2e

import (
	"path/filepath"
	"testing"
	"time"

	"tunneld/internal/netlab/keeper"
)

// TestKeypairsLost kills a gateway whose service manager has lost the memory file
// and nothing else: the node makes a handshake at once.
func TestKeypairsLost(t *testing.T) {
	w := newOffice(t, roadPlan)
	m, err := keeper.New(filepath.Join(t.TempDir(), "notify"))
	w.check(err)
	t.Cleanup(func() { m.Close() })
	w.check(w.hq.Process().Stop())
	w.hq.KeepIn(m)
	w.start(w.hq)
	alice := w.node("alice")
	p := w.probe("alice")
	before, _ := w.established(alice)
	begin := p.Mark()
	w.check(w.hq.Process().Kill9())
	m.Forget("memory")
	w.start(w.hq)
	w.answered(p)
	after, _ := w.established(alice)
	w.same(before, after)
	// Less than the 5 s after which WireGuard tries by itself, at the earliest.
	if got := p.Since(t.Context(), begin, lateAnswers); after.Handshake == before.Handshake || got.LongestGap > 4*time.Second {
		t.Errorf("stats = %+v, with the handshake of %q after that of %q; want another, and no gap of 4 s", got, after.Handshake, before.Handshake)
	}
}
