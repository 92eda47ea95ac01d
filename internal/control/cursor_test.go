package control

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"tunneld/internal/session"
)

// TestCursorWrittenWhileTheOldTransportLived: the request to resume is under way
// while both ends talk on over the old transport, which breaks before the
// request arrives. The request's cursor is behind: it is refused, and the next attempt does.
func TestCursorWrittenWhileTheOldTransportLived(t *testing.T) {
	p := established(t)
	id, old := p.node.m.Sessions()[0].ID, p.transport
	p.transport++
	p.node.step(Attached{p.transport, p.binding(p.node, p.transport)})
	request := p.node.out
	p.node.out = nil
	p.gateway.step(ChangeRoutes{p.gateway.m.Sessions()[0].LocalID, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	p.carry(-1)
	p.gateway.step(Detached{old, time.Now(), errors.New("cut")})
	p.gateway.step(Attached{p.transport, p.binding(p.gateway, p.transport)})
	p.node.out = request
	p.carry(-1)
	if p.node.m.State() == session.Closed {
		t.Fatal("the node was told to give the session up")
	}
	p.cut()
	p.connect()
	p.carry(-1)
	p.wantUp()
	if got := p.node.m.Sessions()[0]; got.ID != id || got.Resumes != 1 {
		t.Errorf("session %v with %d resumes, want %v with 1", got.ID, got.Resumes, id)
	}
}

// TestRolledBack: an end that was set back to what it had on disk long ago
// cannot be resumed with, and the node learns it after a few attempts.
func TestRolledBack(t *testing.T) {
	for _, of := range []string{"node", "gateway"} {
		t.Run(of, func(t *testing.T) {
			p := established(t)
			back := p.node
			if of == "gateway" {
				back = p.gateway
			}
			before := back.saved
			p.gateway.step(ChangeRoutes{p.gateway.m.Sessions()[0].LocalID, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
			p.carry(-1)
			p.cut()
			back.saved = before
			back.restart(session.NewID())
			for range maxBehind + 1 {
				if p.node.m.State() != session.Closed {
					p.connect()
					p.carry(-1)
				}
			}
			if p.node.m.State() != session.Closed {
				t.Errorf("node is %v, want closed: nothing is there to resume", p.node.m.State())
			}
			if p.gateway.m.State() != session.Suspended {
				t.Errorf("gateway is %v, want suspended: the node's next session replaces this one", p.gateway.m.State())
			}
		})
	}
}
