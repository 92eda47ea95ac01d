package control

import (
	"errors"
	"testing"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// TestSaveFailedWhereATransportTakesOver: the disk is full when the new
// transport is to take the old one's place. Both are given up; the old one must
// not stay open with nobody listening to it.
func TestSaveFailedWhereATransportTakesOver(t *testing.T) {
	p := established(t)
	old := p.transport
	p.connect()
	p.carry(1) // SCCRQ
	p.node.lost = true
	p.carry(1) // SCCRP
	if p.node.m.State() != session.Suspended {
		t.Fatalf("state = %v, want suspended", p.node.m.State())
	}
	for _, id := range []TransportID{old, p.transport} {
		if !p.node.dropped[id] {
			t.Errorf("transport %d was not dropped", id)
		}
	}
	p.connect()
	p.carry(-1)
	p.wantUp()
}

// TestDeniedWhereATransportTakesOver: likewise where the node was revoked
// meanwhile.
func TestDeniedWhereATransportTakesOver(t *testing.T) {
	p := established(t)
	old := p.transport
	p.connect()
	p.carry(2) // SCCRQ, SCCRP
	p.gateway.denied = &Denied{wire.Result{Code: wire.StopNotAuthorized, Cause: wire.CauseRevoked}, errors.New("revoked")}
	p.carry(1) // SCCCN
	if p.gateway.m.State() != session.Closed {
		t.Fatalf("state = %v, want closed", p.gateway.m.State())
	}
	for _, id := range []TransportID{old, p.transport} {
		if !p.gateway.dropped[id] {
			t.Errorf("transport %d was not dropped", id)
		}
	}
}
