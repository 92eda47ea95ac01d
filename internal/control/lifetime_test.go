package control

import (
	"testing"
	"time"

	"tunneld/internal/control/wire"
)

func TestHoldIsKeptAtBothEnds(t *testing.T) {
	p := established(t)
	hold := func(held bool) {
		t.Helper()
		p.node.step(HoldSession{LocalID: p.node.m.Sessions()[0].LocalID, Held: held})
		p.carry(-1)
		for _, s := range []*side{p.node, p.gateway} {
			if got := s.m.Sessions()[0].Held; got != held {
				t.Errorf("%v: held = %v, want %v", s.m.cfg.Role, got, held)
			}
			r, err := s.m.Record().Encode()
			if err != nil {
				t.Fatal(err)
			}
			if back, err := DecodeRecord(r); err != nil || back.Sessions[0].Held != held {
				t.Errorf("%v: the record says held = %v, %v, want %v", s.m.cfg.Role, back.Sessions[0].Held, err, held)
			}
		}
	}
	hold(true)
	if got := p.gateway.said("HoldChanged"); got != 1 {
		t.Errorf("the gateway noticed %d times, want 1", got)
	}
	p.node.step(HoldSession{LocalID: p.node.m.Sessions()[0].LocalID, Held: true}) // again: nothing to tell
	if n := len(p.node.out); n != 0 {
		t.Errorf("a hold that changes nothing sent %d messages", n)
	}
	hold(false)
}

// TestChangesWhileSuspendedAreOne: however much changes while nothing carries the
// connection, one message for each session waits, and it says all of it.
func TestChangesWhileSuspendedAreOne(t *testing.T) {
	p := established(t)
	p.cut()
	g := p.gateway.m.Sessions()[0].LocalID
	want := wire.Lifetime{Idle: time.Minute, Absolute: time.Hour}
	stamp := wire.Stamp{0x40, 11: 7}
	p.gateway.step(TellStamp{LocalID: g, Stamp: stamp})
	p.gateway.step(ChangeLifetime{LocalID: g, Lifetime: wire.Lifetime{Idle: time.Second}})
	p.gateway.step(ChangeLifetime{LocalID: g, Lifetime: want})
	if n := p.gateway.m.Pending(); n != 1 {
		t.Errorf("%d messages wait, want 1", n)
	}
	n := p.node.m.Sessions()[0].LocalID
	p.node.step(HoldSession{LocalID: n, Held: true})
	p.node.step(HoldSession{LocalID: n, Held: false})
	p.node.step(HoldSession{LocalID: n, Held: true})
	if n := p.node.m.Pending(); n != 1 {
		t.Errorf("%d messages of the node wait, want 1", n)
	}
	p.connect()
	p.carry(-1)
	if s := p.node.m.Sessions()[0]; s.Lifetime != want || p.node.said("StampTold") != 1 {
		t.Errorf("the node has lifetime %+v, notices %v; want %+v, and the stamp", s.Lifetime, p.node.notices, want)
	}
	if !p.gateway.m.Sessions()[0].Held {
		t.Error("the gateway does not hold the session")
	}
}

// TestGrantTellsTheLifetime: what the gateway grants the node has, and both keep.
func TestGrantTellsTheLifetime(t *testing.T) {
	p := newPair(t)
	p.gateway.life = wire.Lifetime{Idle: time.Minute, Absolute: time.Hour, Reauth: 2 * time.Minute}
	p.connect()
	p.carry(-1)
	p.open()
	p.carry(-1)
	p.wantUp()
	for _, s := range []*side{p.node, p.gateway} {
		if got := s.m.Sessions()[0].Lifetime; got != p.gateway.life {
			t.Errorf("%v: lifetime = %+v, want %+v", s.m.cfg.Role, got, p.gateway.life)
		}
	}
}

// TestStampIsTold: the node hears which stamp was accepted last, also when it
// was told while nothing carried the connection, beside other changes.
func TestStampIsTold(t *testing.T) {
	p := established(t)
	p.cut()
	g := p.gateway.m.Sessions()[0].LocalID
	want := wire.Stamp{0x40, 11: 7}
	p.gateway.step(TellStamp{LocalID: g, Stamp: want})
	p.gateway.step(ChangeLifetime{LocalID: g, Lifetime: wire.Lifetime{Idle: time.Second}})
	var told []wire.Stamp
	p.node.watch = func(_ Event, out []Action) {
		for _, a := range out {
			if a, ok := a.(StampTold); ok {
				told = append(told, a.Stamp)
			}
		}
	}
	p.connect()
	p.carry(-1)
	if len(told) != 1 || told[0] != want {
		t.Errorf("the node was told %x, want %x once", told, want)
	}
}
