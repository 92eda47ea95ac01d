package control

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

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

// FuzzMachine is a peer that is authenticated and hostile, on a bad network,
// with a disk that fails and a clock that runs as it likes, against either role:
// two octets choose what happens next.
func FuzzMachine(f *testing.F) {
	f.Add([]byte{0, 0, 1, 9, 3, 0, 1, 9, 2, 0, 0, 0, 1, 9})                                          // set-up, session, cut, resume
	f.Add([]byte{0, 0, 1, 9, 3, 0, 1, 9, 0, 0, 1, 2, 4, 0, 4, 1, 1, 9})                              // resume beside, restarts
	f.Add([]byte{0, 0, 1, 9, 3, 0, 1, 9, 5, 1, 6, 0, 1, 9, 7, 200, 8, 77})                           // failing saves, forged messages
	f.Add([]byte{0, 0, 1, 9, 3, 0, 1, 9, 2, 0, 10, 0, 0, 0, 1, 9, 10, 0, 0, 0, 1, 9, 1, 9})          // rebuilt by its ticket
	f.Add([]byte{0, 0, 1, 9, 3, 0, 1, 9, 2, 0, 10, 0, 0, 0, 1, 9, 10, 0, 6, 131, 0, 0, 1, 9, 11, 0}) // refused, claimed again
	f.Add([]byte{0, 0, 1, 9, 3, 0, 1, 9, 11, 121, 1, 9, 2, 0, 0, 0, 1, 9})                           // a gateway refreshes, cut, resume
	f.Add([]byte{0, 0, 1, 9, 3, 0, 1, 9, 6, 45, 11, 60, 1, 9, 2, 0, 0, 0, 1, 9, 1})                  // a node does, which is too short
	f.Add([]byte{0, 0, 1, 9, 6, 45, 3, 0, 1, 9, 6, 0, 1, 9})                                         // too short a request
	for i := range byte(8) {
		f.Add([]byte{0, 0, 1, 9, 3, 0, 1, 9, 7, i * 9, 8, i * 9, 7, i * 7, 9, i, 1, 9})
	}
	events := allEvents()
	f.Fuzz(func(t *testing.T, script []byte) {
		p := newPair(t)
		var over [2]*invariants
		p.node.expires = wire.Expires{After: time.Hour}
		p.gateway.expires = wire.Expires{After: time.Hour, Refresher: both[len(script)%2].as()}
		for i, s := range []*side{p.node, p.gateway} {
			s.cfg.MaxSessions, s.cfg.Tickets, s.sealed = 4, s == p.gateway, map[string]Session{}
			s.m = New(s.cfg)
			over[i] = watchOver(t, s)
		}
		for n := 0; len(script) >= 2 && n < 200; n++ {
			what, how := script[0], script[1]
			script = script[2:]
			s, v := p.node, over[0]
			if how&1 == 1 {
				s, v = p.gateway, over[1]
			}
			switch what % 12 {
			case 0:
				p.connect()
			case 1:
				p.carry(int(how % 10))
			case 2:
				p.cut()
			case 3:
				p.open()
			case 4:
				if s.saved != nil && !v.unsaved {
					s.restart(session.ID{6: byte(n) + 1})
				}
			case 5:
				s.lost = !s.lost
			case 6:
				yes := &wire.Result{Code: wire.CDNAdministrative, Cause: wire.Cause(how >> 3)}
				if how&4 == 0 {
					yes = nil
				}
				if yes != nil && how&8 != 0 {
					yes.Floor = time.Duration(how) * time.Minute
				}
				s.deny, s.refuse, s.broken, s.unarmed, s.unchanged = yes, yes, yes, yes, yes
			case 7, 8: // the highest choose a change of keys, which must get far for that
				if how >= 250 {
					p.node.step(StartRekey{p.node.firstID()})
				}
				p.misfortune(s, events[(int(what)/12*256+int(how)/2)%len(events)])
			case 9:
				p.forge(s, how)
			case 10: // the gateway's journal is gone, its ticket key is not
				p.loseState()
				over[1] = watchOver(t, p.gateway)
				over[0].rebuilds++
			case 11:
				p.node.step(RebuildSession{p.node.firstID()})
				p.gateway.step(TellDrain{Leaving: how&1 == 0, Delay: time.Duration(how)})
				s.step(RefreshSession{s.firstID(), time.Duration(how) * time.Minute})
			}
		}
	})
}

// misfortune lets one of the events of the tables happen to s, on its present
// transports.
func (p *pair) misfortune(s *side, event string) {
	at := situation{role: s.cfg.Role}
	if s.m.cur != nil {
		at.cur = s.m.cur.id
	}
	if s.m.next != nil {
		at.next = s.m.next.id
	}
	switch event {
	case "attach":
		p.transport++
		s.step(Attached{p.transport, p.binding(s, p.transport), false})
	case "save-failed": // follows a Save only: case 5 of FuzzMachine
		s.step(Detached{at.cur, time.Now(), errors.New("cut")})
	default:
		p.happen(at, s, event)
	}
}

// forge gives s a message with a header that fits more or less.
func (p *pair) forge(s *side, how byte) {
	id := TransportID(how >> 6)
	if s.m.cur != nil && how>>6 != 3 {
		id = s.m.cur.id
	}
	kinds := []string{"ICRQ", "CDN", "SLI", "FSR", "ICCN", "ICRP", "FSQ", "TKT"}
	q := p.plausible(s, id, kinds[how>>1&7])
	if r, ok := q.Message.(*wire.ICRQ); ok && how>>6 != 0 { // one of the tickets that were given, or none
		r.Ticket, r.KeyEpoch = fmt.Appendf(nil, "ticket %d", how>>6), uint32(how)
	}
	switch how >> 4 & 3 {
	case 1:
		q.Nr -= 1
	case 2:
		q.Ns -= uint16(how)
	case 3:
		q.ConnID--
	}
	s.step(Received{id, q})
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
