package control

import (
	"testing"

	"tunneld/internal/session"
)

// TestRestoreForgetsWhatWasAskedFor: a node that is killed after it asked for a
// session and before the answer asks anew. The old request must come to
// nothing, or one tunnel gets two sessions.
func TestRestoreForgetsWhatWasAskedFor(t *testing.T) {
	for n := range 4 { // of the old conversation that arrive before the kill
		p := newPair(t)
		p.connect()
		p.carry(-1)
		p.open()
		p.carry(n)
		if p.node.m.Sessions()[0].State != session.WaitReply {
			break
		}
		p.gateway.step(Detached{Transport: p.transport})
		p.gateway.out = nil
		p.node.restart(session.NewID())
		if got := p.node.m.Sessions(); len(got) != 0 {
			t.Fatalf("after %d messages: restored sessions = %+v, want none", n, got)
		}
		p.connect()
		p.carry(-1)
		p.open()
		p.carry(-1)
		p.wantUp()
	}
}
