package control

import (
	"bufio"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

const testPark = 30 * time.Second

// inParkingBubble is inBubble with a gateway that parks.
func inParkingBubble(t *testing.T, test func(*testing.T, *ends)) {
	synctest.Test(t, func(t *testing.T) {
		e := &ends{t: t, node: startEnd(t, Initiator), fixtures: newPair(t)}
		s := newSide(t, Responder)
		s.cfg.ParkAfter = testPark
		e.gateway = startSide(t, s, New(s.cfg))
		test(t, e)
	})
}

// wake goes on with the connection of the gateway, which is parked, from its
// record as it was written.
func (e *ends) wake() {
	e.t.Helper()
	b, err := e.gateway.h.saved.Encode()
	if err != nil {
		e.t.Fatal(err)
	}
	rec, err := DecodeRecord(b)
	if err != nil {
		e.t.Fatal(err)
	}
	s, remaining := e.gateway.h.side, e.gateway.Remaining()
	saved := e.gateway.h.saved
	e.gateway = startSide(e.t, s, Restore(s.cfg, rec))
	e.gateway.h.saved = saved
	if err := e.gateway.Do(e.t.Context(), Started{Remaining: remaining, At: time.Now()}); err != nil {
		e.t.Fatal(err)
	}
}

func (e *ends) wantParked() {
	e.t.Helper()
	synctest.Wait()
	if !e.gateway.Parked() {
		e.t.Fatalf("the gateway's connection is not parked: %s", e.gateway.state())
	}
	if err := <-e.gateway.result; err != ErrParked {
		e.t.Fatalf("Run = %v, want ErrParked", err)
	}
}

func (e *ends) suspend() {
	e.t.Helper()
	e.accepted.Close()
	e.want("suspended suspended", "suspended suspended")
}

// TestConnParks: after its time a suspended connection is its record and nothing
// else, and goes on from there.
func TestConnParks(t *testing.T) {
	inParkingBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		e.want(bothUp, bothUp)
		time.Sleep(2 * testPark)
		synctest.Wait()
		if e.gateway.Parked() {
			t.Fatal("a connection with a transport is parked")
		}
		grace := e.gateway.View().Sessions[0].Timers.Grace
		e.suspend()
		time.Sleep(testPark - time.Nanosecond)
		synctest.Wait()
		if e.gateway.Parked() {
			t.Fatal("parked a nanosecond early")
		}
		time.Sleep(time.Nanosecond)
		e.wantParked()
		if got, want := e.gateway.Remaining(), grace-testPark; got != want {
			t.Errorf("Remaining() = %v, want %v", got, want)
		}
		if err := e.gateway.Do(t.Context(), Stop{}); err != ErrParked {
			t.Errorf("Do = %v, want ErrParked", err)
		}
		nc, other := net.Pipe()
		if _, err := e.gateway.Attach(t.Context(), nc, bufio.NewReader(nc), Binding{}, nil); err != ErrParked {
			t.Errorf("Attach = %v, want ErrParked", err)
		}
		go nc.Write([]byte("x"))
		if _, err := other.Read(make([]byte, 1)); err != nil {
			t.Errorf("the transport is not left to its owner: %v", err)
		}
		nc.Close()

		time.Sleep(grace / 2)
		e.wake()
		e.connect()
		e.want(bothUp, bothUp)
		if got := e.gateway.View().Sessions[0].Resumes; got != 1 {
			t.Errorf("resumes = %d, want 1", got)
		}
	})
}

// TestConnParksAgain: what is done to a connection that was woken is in its
// record when it is parked again, and its grace ends when it would have.
func TestConnParksAgain(t *testing.T) {
	inParkingBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		grace := e.gateway.View().Sessions[0].Timers.Grace
		e.suspend()
		began := time.Now()
		for i := range 3 {
			time.Sleep(testPark)
			e.wantParked()
			e.wake()
			s, life := e.gateway.View().Sessions[0], wire.Lifetime{Absolute: time.Duration(i+1) * time.Hour}
			if want := life.Absolute - time.Hour; i > 0 && s.Lifetime.Absolute != want {
				t.Errorf("wake %d: the session may live %v, want %v", i, s.Lifetime.Absolute, want)
			}
			if err := e.gateway.Do(t.Context(), ChangeLifetime{LocalID: s.LocalID, Lifetime: life}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Until(began.Add(grace)) - time.Second)
		e.wantParked()
		e.wake()
		if got := e.gateway.View().State; got != session.Suspended {
			t.Errorf("a second before the grace is over: %v", got)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := e.gateway.View().State; got != session.Closed {
			t.Errorf("after the grace: %v", got)
		}
	})
}

// TestConnParksNothingUnsaved: what the journal does not have keeps a connection
// from being parked until it has.
func TestConnParksNothingUnsaved(t *testing.T) {
	inParkingBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		e.gateway.h.full.Store(true)
		e.suspend()
		time.Sleep(5 * testPark)
		synctest.Wait()
		if e.gateway.Parked() {
			t.Fatal("parked, with a record that is not written")
		}
		e.gateway.h.full.Store(false)
		time.Sleep(writeAgainAfter + testPark)
		e.wantParked()
		if r := e.gateway.h.saved; r.SuspendedAt.IsZero() {
			t.Error("the record does not say that the connection is suspended")
		}
	})
}

// TestConnParksNoHalfMadeTransport: one that is being resumed is not at rest.
func TestConnParksNoHalfMadeTransport(t *testing.T) {
	inParkingBubble(t, func(t *testing.T, e *ends) {
		e.connect()
		e.open()
		e.suspend()
		time.Sleep(testPark - time.Second)
		mute, other := net.Pipe()
		defer other.Close()
		if _, err := e.gateway.Attach(t.Context(), mute, bufio.NewReader(mute), e.fixtures.binding(e.fixtures.gateway, 7), nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if e.gateway.Parked() {
			t.Fatal("parked while a transport was being set up")
		}
		time.Sleep(defaultSetupTimeout + testPark)
		e.wantParked()
	})
}
