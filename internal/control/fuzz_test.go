package control

import (
	"bytes"
	"testing"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// invariants are what holds of a machine after every step, whatever its peer,
// its clock and its disk do.
type invariants struct {
	t        *testing.T
	s        *side
	up, down map[session.ID]int
	unsaved  bool // the last Save failed: the disk is behind
	rebuilds int  // how often a session may have come up once more
}

var count = map[bool]int{true: 1}

func watchOver(t *testing.T, s *side) *invariants {
	v := &invariants{t: t, s: s, up: map[session.ID]int{}, down: map[session.ID]int{}}
	s.watch = v.step
	return v
}

func (v *invariants) step(ev Event, actions []Action) {
	v.t.Helper()
	saved, sent, asked, done := 0, false, false, true
	for _, a := range actions {
		if asked {
			v.t.Fatalf("%s: %s follows a question", v.s.name, brief(a))
		}
		switch a := a.(type) {
		case Save:
			if saved++; saved > 1 || sent {
				v.t.Fatalf("%s: Save comes twice or too late in the step for %T", v.s.name, ev)
			}
			v.unsaved = v.s.lost
			done = !v.s.lost // what follows a Save that fails is not done
		case Send:
			sent = sent || a.Packet.Message.Type() != wire.TypeStopCCN
		case AskAuthorize, AskSession, AskSetUp, AskSign, AskArm, AskChange, AskExtend, AskRefresh, AskTicket:
			asked = true
		case SessionUp:
			v.up[a.Session.ID] += count[done]
		case SessionDown:
			v.down[a.Session.ID] += count[done]
		}
	}
	if sent && saved == 0 && !v.unsaved {
		v.onDisk()
	}
	v.bounds()
}

// onDisk: what a step that saved nothing speaks of is on disk already.
func (v *invariants) onDisk() {
	v.t.Helper()
	if v.s.saved == nil || v.s.m.State() != session.Established {
		return
	}
	// A peer's acknowledgement alone is not worth a write, nor is the major point
	// that it makes.
	a, b := *v.s.m.Record(), *v.s.saved
	a.Unacked, b.Unacked = nil, nil
	a.Major, b.Major = 0, 0
	now, err := a.Encode()
	if err != nil {
		v.t.Fatal(err)
	}
	then, err := b.Encode()
	if err != nil {
		v.t.Fatal(err)
	}
	if !bytes.Equal(now, then) {
		v.t.Fatalf("%s speaks of what is not on disk:\n%s\n%s", v.s.name, now, then)
	}
}

func (v *invariants) bounds() {
	v.t.Helper()
	m := v.s.m
	if len(m.sessions) > m.cfg.MaxSessions {
		v.t.Fatalf("%s: %d sessions, at most %d", v.s.name, len(m.sessions), m.cfg.MaxSessions)
	}
	if len(m.rec.Unacked) > maxUnacked+2*m.cfg.MaxSessions {
		v.t.Fatalf("%s: %d messages are kept", v.s.name, len(m.rec.Unacked))
	}
	for id, n := range v.down {
		if n > 1 {
			v.t.Fatalf("%s: session %v ended %d times", v.s.name, id, n)
		}
	}
	for id, n := range v.up {
		if n > 1+v.rebuilds {
			v.t.Fatalf("%s: session %v came up %d times", v.s.name, id, n)
		}
		if m.State() == session.Closed && v.down[id] != 1 {
			v.t.Fatalf("%s: session %v never ended, and the connection is closed", v.s.name, id)
		}
	}
	if m.State() == session.Closed && (len(m.sessions) != 0 || m.cur != nil || m.next != nil) {
		v.t.Fatalf("%s is closed and holds on to something", v.s.name)
	}
	if (m.cur != nil) != (m.State() == session.Established) {
		v.t.Fatalf("%s is %v, its transport %v", v.s.name, m.State(), m.cur)
	}
}

// FuzzRecord reads records that the store gave back: a broken disk or a newer
// daemon wrote them. Decode and encode are a fixed point.
func FuzzRecord(f *testing.F) {
	for _, r := range []Record{{}, {
		Role: Responder, LocalID: 1, Unacked: []*wire.Packet{{ConnID: 2, Message: &wire.CDN{LocalID: 3, Result: wire.Result{Code: 3}}}},
		Sessions: []Session{{LocalID: 3, State: session.Established, Network: "office"}},
	}} {
		b, err := r.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"Version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRecord(b)
		if err != nil {
			return
		}
		once, err := r.Encode()
		if err != nil {
			return // times and messages that JSON or the wire cannot say
		}
		again, err := DecodeRecord(once)
		if err != nil {
			t.Fatalf("DecodeRecord(Encode) = %v, of %s", err, once)
		}
		twice, err := again.Encode()
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%v: a record is written as\n%s\nthen as\n%s", err, once, twice)
		}
		Restore(Config{Rand: nil}, r)
	})
}
