package control

import (
	"testing"
	"time"

	"tunneld/internal/control/wire"
)

func serials(p *pair) [2]uint64 { return [2]uint64{p.node.m.rec.Serial, p.gateway.m.rec.Serial} }

// TestCheckpoints: whenever nothing is under way both ends stand at one serial,
// after a restart too; what is under way is what they differ by.
func TestCheckpoints(t *testing.T) {
	p := newPair(t)
	p.connect()
	p.carry(-1)
	if got := serials(p); got != [2]uint64{firstSerial, firstSerial} {
		t.Fatalf("after the set-up the ends stand at %v, want %d", got, firstSerial)
	}
	p.open()
	p.carry(-1)
	if got := serials(p); got != [2]uint64{6, 6} {
		t.Fatalf("after ICRQ, ICRP and ICCN the ends stand at %v, want 6", got)
	}
	id := p.gateway.m.Sessions()[0].LocalID
	for range 3 {
		p.gateway.step(news(id))
	}
	if got := serials(p); got != [2]uint64{6, 9} {
		t.Errorf("with three messages under way the ends stand at %v, want 6 and 9", got)
	}
	p.cut()
	p.gateway.restart(gatewayBoot)
	p.connect()
	p.carry(-1)
	if got := serials(p); got != [2]uint64{9, 9} {
		t.Errorf("after the resume the ends stand at %v, want 9", got)
	}
	for _, s := range []*side{p.node, p.gateway} {
		if s.m.rec.Major != 9 {
			t.Errorf("%s: the last major point is %d, want 9", s.name, s.m.rec.Major)
		}
	}
	p.wantUp()
}

// TestMajorPointAtASilentResume: where nothing was under way the cursors say so,
// before FSQ does.
func TestMajorPointAtASilentResume(t *testing.T) {
	p := established(t)
	p.cut()
	p.connect()
	p.carry(3) // SCCRQ, SCCRP, SCCCN
	for _, s := range []*side{p.node, p.gateway} {
		if s.saved.Major != 6 || s.saved.Serial != 6 {
			t.Errorf("%s: on disk is major point %d of serial %d, want 6", s.name, s.saved.Major, s.saved.Serial)
		}
	}
}

func TestCheckpointsDiffer(t *testing.T) {
	for _, tt := range []struct {
		name string
		m    wire.Message
		ok   bool
	}{
		{"FSQ, the same", &wire.FSQ{Checkpoint: 6}, true},
		{"FSR, the same", &wire.FSR{Checkpoint: 6}, true},
		{"FSQ, not told", &wire.FSQ{}, true},
		{"FSQ behind", &wire.FSQ{Checkpoint: 5}, false},
		{"FSR behind", &wire.FSR{Checkpoint: 5}, false},
		{"FSQ ahead", &wire.FSQ{Checkpoint: 7}, false},
		{"FSQ of another turn of the cursor", &wire.FSQ{Checkpoint: 6 + 1<<16}, false},
	} {
		for _, role := range []Role{Initiator, Responder} {
			p := established(t)
			s := p.node
			if role == Responder {
				s = p.gateway
			}
			var ended *Ended
			s.watch = func(_ Event, out []Action) {
				for _, a := range out {
					if e, ok := a.(Ended); ok {
						ended = &e
					}
				}
			}
			s.step(Received{p.transport, &wire.Packet{ConnID: s.m.rec.LocalID, Ns: s.m.rec.Nr, Nr: s.m.rec.Ns, Message: tt.m}})
			switch {
			case tt.ok && ended != nil:
				t.Errorf("%s, role %d: the connection ended: %v", tt.name, role, ended.Err)
			case !tt.ok && (ended == nil || ended.Result.Cause != wire.CauseCheckpoint || ended.Result.Cause.Advice() != wire.Reconnect):
				t.Errorf("%s, role %d: ended = %+v, want cause %d", tt.name, role, ended, wire.CauseCheckpoint)
			}
		}
	}
}

// TestCheckpointOfAnOlderRecord: an end that does not know its serial takes the
// other's; where neither does, both take the gateway's.
func TestCheckpointOfAnOlderRecord(t *testing.T) {
	for _, tt := range []struct{ node, gateway bool }{{true, false}, {false, true}, {false, false}} {
		p := established(t)
		p.node.step(CloseSession{LocalID: p.node.m.Sessions()[0].LocalID, Result: wire.Result{Code: wire.CDNAdministrative}})
		p.carry(-1)
		p.open()
		p.carry(-1)
		want := p.node.m.rec.Serial
		p.cut()
		for s, known := range map[*side]bool{p.node: tt.node, p.gateway: tt.gateway} {
			if !known {
				s.saved.Serial, s.saved.Major = 0, 0
				s.restart(s.cfg.BootID)
			}
		}
		p.gateway.step(ChangeLifetime{LocalID: p.gateway.m.Sessions()[0].LocalID, Lifetime: wire.Lifetime{Idle: time.Minute}})
		p.connect()
		p.carry(-1)
		if got := serials(p); got != [2]uint64{want + 1, want + 1} {
			t.Errorf("known at node %v, gateway %v: the ends stand at %v, want %d", tt.node, tt.gateway, got, want+1)
		}
		p.wantUp()
	}
}
