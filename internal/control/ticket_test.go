package control

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// seal makes a ticket: here it is its number.
func (s *side) seal(of Session) []byte {
	ticket := fmt.Sprintf("ticket %d", len(s.sealed))
	s.sealed[ticket] = of
	return []byte(ticket)
}

// rebuilt is g, or what the ticket of q says where there is one.
func (s *side) rebuilt(g Grant, q *wire.ICRQ) Grant {
	if of, ok := s.sealed[string(q.Ticket)]; ok {
		g.ID, g.KeyEpoch, g.Resumes, g.Addresses = of.ID, q.KeyEpoch, of.Resumes+1, of.Addresses
	}
	return g
}

// ticketed is a pair with one session whose gateway gives tickets.
func ticketed(t *testing.T) *pair {
	p := newPair(t)
	p.gateway.sealed = map[string]Session{}
	p.gateway.cfg.Tickets = true
	p.gateway.m = New(p.gateway.cfg)
	p.connect()
	p.carry(-1)
	p.open()
	p.carry(-1)
	p.wantUp()
	return p
}

// loseState is a gateway whose journal is gone and whose ticket key is not.
func (p *pair) loseState() {
	g := p.gateway
	g.saved, g.out, g.notices = nil, nil, nil
	g.cfg.LocalID++
	g.cfg.BootID[15]++
	g.m = New(g.cfg)
}

// resumes dials, as often as it takes for a gateway that knows nothing: such a
// machine is over when it has said so.
func (p *pair) resumes() {
	p.t.Helper()
	p.connect()
	p.carry(-1)
	if p.gateway.m.State() == session.Closed {
		p.gateway.cfg.LocalID++
		p.gateway.m = New(p.gateway.cfg)
		p.connect()
		p.carry(-1)
	}
}

func (s *side) ticketKept() string {
	if len(s.m.sessions) == 0 {
		return "none"
	}
	return string(s.m.sessions[0].Ticket.Reveal())
}

func TestTicketsAreGiven(t *testing.T) {
	p := ticketed(t)
	if got := p.node.ticketKept(); got != "ticket 0" {
		t.Errorf("the node has %q when the session is up, want the first ticket", got)
	}
	if got := p.gateway.armed[TimerTicket]; got != time.Hour/3 {
		t.Errorf("ticket timer = %v, want a third of the grace", got)
	}
	p.cut()
	p.resumes()
	if got := p.node.ticketKept(); got != "ticket 1" {
		t.Errorf("the node has %q after a resume, want another ticket", got)
	}
	p.gateway.step(Expired{TimerTicket, time.Now()})
	p.carry(-1)
	if got := p.node.ticketKept(); got != "ticket 2" {
		t.Errorf("the node has %q when it was old, want another ticket", got)
	}
	p.cut()
	p.gateway.step(Expired{TimerTicket, time.Now()})
	if n := len(p.gateway.sealed); n != 3 {
		t.Errorf("%d tickets were made, want none while suspended", n)
	}
	p.wantTicketOnDisk()
}

// wantTicketOnDisk: a ticket outlives the node's process.
func (p *pair) wantTicketOnDisk() {
	p.t.Helper()
	want := p.node.ticketKept()
	p.node.restart(nodeBoot)
	if got := p.node.ticketKept(); got != want {
		p.t.Errorf("after a restart the node has ticket %q, want %q", got, want)
	}
}

// An older peer, which says nothing of tickets, gets none.
func TestTicketsAreForThoseWhoKeepThem(t *testing.T) {
	p := ticketed(t)
	before := len(p.gateway.sealed)
	p.gateway.m.peerCapabilities = 0
	p.gateway.step(Expired{TimerTicket, time.Now()})
	p.gateway.step(TellDrain{Leaving: true})
	if n := len(p.gateway.out); n != 0 || len(p.gateway.sealed) != before {
		t.Errorf("%d messages were sent and %d tickets made for a peer that reads none", n, len(p.gateway.sealed)-before)
	}
}

func TestRebuild(t *testing.T) {
	p := ticketed(t)
	before := p.node.m.Sessions()[0]
	for i := range uint64(3) {
		p.cut()
		p.loseState()
		p.connect()
		p.carry(-1)
		if v := p.node.m.Sessions(); p.node.m.State() != session.Suspended || len(v) != 1 || v[0].State != session.Suspended || p.node.said("SessionDown") != 0 {
			t.Fatalf("refused: the node is %v with %v", p.node.m.State(), v)
		}
		p.resumes()
		p.wantUp()
		n := p.node.m.Sessions()[0]
		if n.ID != before.ID || n.Addresses[0] != before.Addresses[0] || n.KeyEpoch != uint32(i+1) || n.Resumes != i+1 || p.gateway.m.Sessions()[0].Resumes != i+1 {
			t.Errorf("rebuilt as %v with %v in epoch %d, resumes %d", n.ID, n.Addresses, n.KeyEpoch, n.Resumes)
		}
		if n.PresharedKey.Equal(before.PresharedKey) || n.Label != "work" || n.Rebuild || p.node.ticketKept() == "" {
			t.Errorf("rebuilt: %+v", n)
		}
		if p.node.said("SessionDown")+p.node.said("SessionRefused") != 0 {
			t.Errorf("notices of the node: %v", p.node.notices)
		}
	}
	p.rekey()
	p.carry(-1)
	p.confirm()
	p.carry(-1)
	p.wantQuiet()
}

// TestRebuildOfAHeldSession: the hold is the node's, which tells of it again.
func TestRebuildOfAHeldSession(t *testing.T) {
	p := ticketed(t)
	p.node.step(HoldSession{LocalID: p.node.firstID(), Held: true})
	p.carry(-1)
	p.cut()
	p.loseState()
	p.resumes()
	p.resumes()
	p.wantUp()
	if !p.node.m.Sessions()[0].Held || !p.gateway.m.Sessions()[0].Held {
		t.Errorf("held: node %v, gateway %v; want both", p.node.m.Sessions()[0].Held, p.gateway.m.Sessions()[0].Held)
	}
}

// TestRebuildDuringAChangeOfKeys: the epoch that was being agreed on is not used
// a second time.
func TestRebuildDuringAChangeOfKeys(t *testing.T) {
	p := ticketed(t)
	p.rekey()
	p.carry(-1) // armed at both ends
	p.cut()
	p.loseState()
	p.resumes()
	p.resumes()
	p.wantQuiet()
	if got := p.node.epoch(); got != 2 || p.node.said("RekeyFailed") != 1 {
		t.Errorf("key epoch %d, notices %v; want 2, and the change failed", got, p.node.notices)
	}
}

// TestRebuildAfterAnAccidentAnywhere cuts, kills or loses a write after each
// number of messages of a rebuild, and wants the same session each time.
func TestRebuildAfterAnAccidentAnywhere(t *testing.T) {
	accidents := map[string]func(p *pair){
		"cut":                func(*pair) {},
		"node killed":        func(p *pair) { p.node.restart(session.ID{3: 1}) },
		"gateway killed":     func(p *pair) { p.restartGateway() },
		"write of node":      func(p *pair) { p.node.lost = true },
		"write of gateway":   func(p *pair) { p.gateway.lost = true },
		"state lost again":   func(p *pair) { p.loseState() },
		"write, then killed": func(p *pair) { p.node.lost = true; p.carry(-1); p.node.restart(session.ID{3: 1}) },
	}
	for name, accident := range accidents {
		for n := range 14 {
			p := ticketed(t)
			id := p.node.m.Sessions()[0].ID
			p.cut()
			p.loseState()
			p.resumes() // refused
			p.gateway.cfg.LocalID++
			p.gateway.m = New(p.gateway.cfg)
			p.connect()
			p.carry(n)
			if strings.HasPrefix(name, "write") {
				accident(p)
				p.carry(-1)
				p.cut()
			} else {
				p.cut()
				accident(p)
			}
			p.node.lost, p.gateway.lost = false, false
			for range 3 {
				p.resumes()
			}
			if ns := p.node.m.Sessions(); len(ns) != 1 || ns[0].ID != id {
				t.Fatalf("%s after %d messages: sessions %v, notices %v", name, n, ns, p.node.notices)
			}
			p.wantQuiet()
		}
	}
}

// restartGateway is kill -9; of a gateway that had not written anything nothing
// is left.
func (p *pair) restartGateway() {
	if p.gateway.saved == nil {
		p.loseState()
		return
	}
	p.gateway.restart(session.ID{3: 2})
}

// claimed builds a claim in one of its phases: the gateway has lost all, and
// waits for the node's second transport (unclaimed), has answered the claim
// (claimed), or refused it for now (refused).
func claimed(phase string) func(*testing.T) *pair {
	return func(t *testing.T) *pair {
		p := ticketed(t)
		p.cut()
		p.loseState()
		p.connect()
		p.carry(-1) // that nothing is there to resume
		p.loseState()
		switch phase {
		case "refused":
			p.gateway.refuse = &wire.Result{Code: wire.CDNNoFacilities, Cause: wire.CauseBusy}
			p.connect()
			p.carry(-1)
			p.gateway.refuse = nil
		case "claimed":
			p.connect()
			p.carry(5) // SCCRQ, SCCRP, SCCCN, ICRQ, ACK: ICRP waits
		case "claimed-suspended":
			p.connect()
			p.carry(5)
			p.cut()
		}
		return p
	}
}

// phaseOfClaim is how far the rebuilding of the first session is.
func (s *side) phaseOfClaim() string {
	if len(s.m.sessions) == 0 {
		return "gone"
	}
	up := s.m.cur != nil
	switch first := s.m.sessions[0]; {
	case !first.Rebuild && up:
		return "established"
	case !first.Rebuild:
		return "suspended"
	case first.State == session.WaitReply && up:
		return "claimed"
	case first.State == session.WaitReply:
		return "claimed-suspended"
	case up:
		return "refused"
	}
	return "unclaimed"
}

const claimEvents = "ICRP ICRP-session ICRP-epoch ICRP-key ICRP-proof ICRP-broken ICRP-address ICCN SLI TKT KRP CDN-retry CDN-reconnect CDN-give-up FSR-unknown rebuild hold rekey close lost grace"

func claimRows() (rows []row) {
	add := func(situations, events, next, actions string) {
		rows = append(rows, row{Initiator, situations, events, next, actions})
	}
	const (
		acked = "arm:hello save send:ACK@3"
		gone  = "arm:hello arm:hello SessionDown/"
	)
	messages := "ICRP ICRP-session ICRP-epoch ICRP-key ICRP-proof ICRP-broken ICRP-address ICCN SLI TKT KRP CDN-retry CDN-reconnect CDN-give-up FSR-unknown"
	add("unclaimed claimed-suspended", messages+" rebuild lost hold rekey", "", nothing)
	add("unclaimed", "close", "gone", "SessionDown/3 save") // nobody is there to be told
	add("claimed-suspended", "close", "gone", "SessionDown/3 save")
	add("unclaimed claimed-suspended", "grace", "gone", "SessionDown/1.12 forget"+over+"/1.12")
	add("refused claimed", "grace hold rekey", "", nothing)
	add("refused claimed", "FSR-unknown", "", "arm:hello")
	add("refused claimed", "SLI TKT", "", acked)
	add("claimed", "ICRP", "established", "arm:hello ask:setup save send:ICCN@3 SessionUp")
	add("claimed", "ICRP-session ICRP-epoch ICRP-key ICRP-proof ICRP-address", "gone", gone+"2.7 save send:CDN/2.7@3")
	add("claimed", "ICRP-broken", "gone", "arm:hello ask:setup arm:hello save send:CDN/2.15@3 SessionDown/2.15")
	add("claimed", "ICCN KRP", "gone", gone+"16 save send:CDN/16@3")
	add("claimed", "CDN-retry", "refused", "arm:hello RebuildRefused save send:ACK@3")
	add("claimed refused", "CDN-reconnect", "gone", gone+"3.28 save send:ACK@3")
	add("claimed refused", "CDN-give-up", "gone", gone+"3.6 save send:ACK@3")
	add("claimed", "rebuild", "", nothing)
	add("claimed", "lost", "claimed-suspended", "drop@3 disarm:hello arm:grace WasSuspended save")
	add("claimed refused", "close", "gone", "arm:hello SessionDown/3 save send:CDN/3@3")
	add("refused", "CDN-retry", "gone", gone+"4.16 save send:ACK@3") // nothing was asked
	add("refused", "ICRP ICRP-session ICRP-epoch ICRP-key ICRP-proof ICRP-broken ICRP-address ICCN KRP", "gone", gone+"16 save send:CDN/16@3")
	add("refused", "rebuild", "claimed", "save send:ICRQ@3")
	add("refused", "lost", "unclaimed", "drop@3 disarm:hello arm:grace WasSuspended save")
	return rows
}

func TestClaimTable(t *testing.T) {
	pairs := pairsOf(t, claimRows())
	for _, phase := range []string{"unclaimed", "claimed", "claimed-suspended", "refused"} {
		s := situation{role: Initiator, name: phase, build: claimed(phase)}
		for _, e := range strings.Fields(claimEvents) {
			key := fmt.Sprintf("%v %s", s, e)
			want, ok := pairs[key]
			delete(pairs, key)
			if !ok {
				t.Errorf("nobody wrote down what happens at %s", key)
				continue
			}
			t.Run(key, func(t *testing.T) { s.tryClaim(t, e, want) })
		}
	}
	for key := range pairs {
		t.Errorf("the table speaks of %q, which is no pair", key)
	}
}

func (s situation) tryClaim(t *testing.T, event string, want row) {
	p := s.build(t)
	if got := p.node.phaseOfClaim(); got != s.name {
		t.Fatalf("it begins as %s", got)
	}
	p.node.trace = nil
	p.happenToClaim(event)
	next := want.nextOf(s.name)
	if got := strings.Join(p.node.trace, " "); got != want.actions || p.node.phaseOfClaim() != next {
		t.Fatalf("\n got %s, %q\nwant %s, %q", p.node.phaseOfClaim(), got, next, want.actions)
	}
}

// happenToClaim lets one event happen to the node.
func (p *pair) happenToClaim(event string) {
	p.t.Helper()
	under := p.node
	name, variant, _ := strings.Cut(event, "-")
	switch event {
	case "lost":
		under.step(Detached{3, time.Now(), errors.New("reset by peer")})
		return
	case "close", "rekey", "rebuild", "hold", "grace":
		p.locally(under, event)
		return
	}
	s := *under.m.sessions[0]
	q := p.owed(p.gateway, 3, name)
	if q == nil {
		s.RemoteID = max(s.RemoteID, 9)
		q = &wire.Packet{ConnID: under.m.rec.LocalID, Message: aboutSession(p.t, name, s)}
	}
	q.Ns, q.Nr = under.m.rec.Nr, under.m.rec.Ns
	switch m := q.Message.(type) {
	case *wire.ICRP:
		spoilRebuilt(under, m, variant)
	case *wire.CDN:
		m.LocalID = 0
		m.Result = map[string]wire.Result{
			"retry":     {Code: wire.CDNNoFacilities, Cause: wire.CauseBusy},
			"reconnect": {Code: wire.CDNAdministrative, Cause: wire.CauseTicketOld},
			"give-up":   {Code: wire.CDNAdministrative, Cause: wire.CauseRevoked},
		}[variant]
	case *wire.FSR:
		m.Sessions[0] = wire.SessionPair{LocalID: s.RemoteID}
	}
	under.step(Received{3, q})
	under.broken = nil
}

func spoilRebuilt(under *side, m *wire.ICRP, variant string) {
	switch variant {
	case "session":
		m.Session[3]++
	case "epoch":
		m.KeyEpoch++
	case "key":
		m.PublicKey[3]++
	case "proof":
		m.KeyProof[3]++
	case "address":
		m.Addresses = nil
	case "broken":
		under.broken = &wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseLocal}
	}
}

// TestRefusedRebuild: what the cause advises is done, and a session that may come
// later is kept and claimed again.
func TestRefusedRebuild(t *testing.T) {
	for _, tt := range []struct {
		cause wire.Cause
		kept  bool
	}{
		{wire.CauseBusy, true}, {wire.CauseStore, true}, {wire.CauseDraining, true},
		{wire.CauseTicketForeign, false}, {wire.CauseTicketOld, false}, {wire.CauseTicketUsed, false}, {wire.CauseTicketLeased, false}, {wire.CauseRevoked, false},
	} {
		p := ticketed(t)
		id := p.node.m.Sessions()[0].ID
		p.cut()
		p.loseState()
		p.gateway.refuse = &wire.Result{Code: wire.CDNAdministrative, Cause: tt.cause}
		p.resumes()
		p.resumes()
		if kept := len(p.node.m.Sessions()) == 1; kept != tt.kept || kept == (p.node.said("SessionDown") == 1) {
			t.Errorf("cause %d: kept = %v, want %v; notices %v", tt.cause, kept, tt.kept, p.node.notices)
		}
		p.gateway.refuse = nil
		if tt.kept {
			p.node.step(RebuildSession{p.node.firstID()})
			p.carry(-1)
			p.wantUp()
			if got := p.node.m.Sessions()[0].ID; got != id {
				t.Errorf("rebuilt at the second try as %v, want %v", got, id)
			}
		}
	}
}

// A peer that cannot recover a connection (RFC 4951, section 3) keeps nothing of
// it, so this end keeps nothing either.
func TestPeerThatCannotRecover(t *testing.T) {
	p := established(t)
	p.node.m.rec.Unrecoverable = true
	p.cut()
	if p.node.m.State() != session.Closed || p.node.said("SessionDown") != 1 || p.node.saved != nil {
		t.Errorf("after the cut: %v, notices %v", p.node.m.State(), p.node.notices)
	}
	for _, f := range []*wire.Failover{nil, {Data: true}, {Control: true}} {
		p := newPair(t)
		p.connect()
		p.carry(1)
		reply := p.owed(p.gateway, 1, "SCCRP")
		reply.Message.(*wire.SCCRP).Failover = f
		p.node.step(Received{1, reply})
		if got, want := p.node.m.rec.Unrecoverable, f == nil || !f.Control; got != want {
			t.Errorf("failover %+v: unrecoverable = %v, want %v", f, got, want)
		}
	}
}
