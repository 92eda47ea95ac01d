package control

import (
	"testing"
	"testing/synctest"
	"time"

	"tunneld/internal/session"
)

// TestCursorsWrittenWhileTheOldTransportLived: a node whose network flaps has
// many requests to resume under way while both ends talk on over the old
// transport, which breaks before the first of them arrives. The cursors of all
// are behind, and none is refused for it.
func TestCursorsWrittenWhileTheOldTransportLived(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		before, old := e.node.View().Sessions[0], e.accepted
		var requests []func()
		for range 6 {
			requests = append(requests, e.dial())
			synctest.Wait()
		}
		time.Sleep(time.Second)
		if err := e.gateway.Do(t.Context(), news(e.gateway.View().Sessions[0].LocalID)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		old.Close()
		synctest.Wait()
		for _, accept := range requests {
			accept()
		}
		e.want(bothUp, bothUp)
		if got := e.node.View().Sessions[0]; got.ID != before.ID || got.Resumes != 1 {
			t.Errorf("session %v with %d resumes, want %v with 1", got.ID, got.Resumes, before.ID)
		}
	})
}

// TestRolledBack: an end that was set back to what it had on disk long ago
// cannot be resumed with, and the node learns it from the first attempt.
func TestRolledBack(t *testing.T) {
	for _, of := range []string{"node", "gateway"} {
		t.Run(of, func(t *testing.T) {
			p := established(t)
			back := p.node
			if of == "gateway" {
				back = p.gateway
			}
			before := back.saved
			p.gateway.step(news(p.gateway.m.Sessions()[0].LocalID))
			p.carry(-1)
			p.cut()
			back.saved = before
			back.restart(session.NewID())
			p.connect()
			p.carry(-1)
			if p.node.m.State() != session.Closed {
				t.Errorf("node is %v, want closed: nothing is there to resume", p.node.m.State())
			}
			if p.gateway.m.State() != session.Suspended {
				t.Errorf("gateway is %v, want suspended: the node's next session replaces this one", p.gateway.m.State())
			}
		})
	}
}
