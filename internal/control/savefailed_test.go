package control

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

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

// TestConnWritesAgain: what the disk did not take is written when it does,
// without another event: a session that ended would come back with a restart.
func TestConnWritesAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		e.gateway.h.full.Store(true)
		id := e.gateway.View().Sessions[0].LocalID
		if err := e.gateway.Do(t.Context(), CloseSession{LocalID: id}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := len(e.gateway.h.saved.Sessions); n != 1 {
			t.Fatalf("%d sessions on disk while it is full, want the old record with 1", n)
		}
		e.gateway.h.full.Store(false)
		time.Sleep(2 * writeAgainAfter)
		synctest.Wait()
		if n := len(e.gateway.h.saved.Sessions); n != 0 {
			t.Errorf("%d sessions on disk when there is room again, want 0", n)
		}
	})
}

// TestConnForgetsAtLast: a connection that is over is not done before its record
// is gone.
func TestConnForgetsAtLast(t *testing.T) {
	inBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		e.gateway.h.full.Store(true)
		if err := e.gateway.Do(t.Context(), Stop{Result: wire.Result{Code: wire.StopShuttingDown}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if e.gateway.h.saved == nil {
			t.Fatal("the record is gone though the disk is full")
		}
		e.gateway.h.full.Store(false)
		time.Sleep(2 * writeAgainAfter)
		if err := <-e.gateway.result; err != nil || e.gateway.h.saved != nil {
			t.Errorf("Run = %v with record %v, want nil and none", err, e.gateway.h.saved)
		}
	})
}
