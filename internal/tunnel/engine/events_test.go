package engine

import (
	"net/netip"
	"testing"

	"tunneld/internal/session"
)

func TestEvents(t *testing.T) {
	var q Events
	a, b := session.NewID(), session.NewID()
	select {
	case <-q.Ready():
		t.Error("an empty queue is ready")
	default:
	}
	first, last := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2")
	for _, e := range []Event{{Kind: EndpointMoved, Session: b, Endpoint: first}, {Kind: NoAnswer, Session: a}, {Kind: HandshakeDone, Session: b}} {
		q.Tell(e)
	}
	for range 1000 { // a reader that sleeps
		q.Tell(Event{Kind: EndpointMoved, Session: b, Endpoint: last})
	}
	<-q.Ready()
	got := q.Take()
	if len(got) != 3 || got[0].Kind != HandshakeDone || got[1] != (Event{Kind: EndpointMoved, Session: b, Endpoint: last}) || got[2].Session != a {
		t.Errorf("Take = %+v, want the handshake and the last move of the first session, then the other", got)
	}
	if more := q.Take(); len(more) != 0 {
		t.Errorf("Take again = %+v, want nothing", more)
	}
	q.Tell(Event{Kind: NoAnswer, Session: a})
	<-q.Ready()
}
