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

// Session situations: RFC 3931, section 7.3. "none" is its idle.
var sessionSituations = []situation{
	{Initiator, "none", 1, 0, sessionAt(0)},
	{Initiator, "wait-reply", 1, 0, sessionAt(2)}, // the gateway has answered
	{Initiator, "established", 1, 0, reach(true, false, -1)},
	{Initiator, "suspended", 0, 0, reach(true, true, -1)},
	{Responder, "none", 1, 0, sessionAt(0)},
	{Responder, "wait-connect", 1, 0, sessionAt(3)}, // the node has answered
	{Responder, "established", 1, 0, reach(true, false, -1)},
	{Responder, "suspended", 0, 0, reach(true, true, -1)},
}

// sessionAt builds an established connection in which a session got as far as n
// messages bring it: 0, it was not asked for; 2, ICRQ and what acknowledges it
// were carried.
func sessionAt(n int) func(*testing.T) *pair {
	return func(t *testing.T) *pair {
		p := newPair(t)
		p.connect()
		p.carry(-1)
		if n == 0 {
			return p
		}
		p.open()
		p.carry(n - 1)
		return p
	}
}

const (
	sessionMessages = "ICRQ ICRQ-same ICRQ-pwtype ICRQ-proof ICRQ-refused ICRQ-broken ICRP ICRP-proof ICRP-broken ICRP-stranger ICCN ICCN-stranger " +
		"CDN CDN-unnamed CDN-refusal CDN-stranger SLI SLI-status SLI-hold SLI-lifetime SLI-stamp SLI-stranger WEN WEN-stranger FSQ FSQ-stranger FSR FSR-unknown"
	sessionLocal = "open close routes hold lifetime stamp trouble lost"
)

func sessionRows() (rows []row) {
	add := func(role Role, situations, events, next, actions string) {
		rows = append(rows, row{role, situations, events, next, actions})
	}
	const (
		acked = "arm:hello save send:ACK@1"    // counted and acknowledged, nothing else
		wrong = "arm:hello save send:CDN/16@1" // out of turn
		live  = "none wait-reply established"  // an initiator's
		alive = "none wait-connect established"
	)
	for _, r := range both {
		states := live
		if r == Responder {
			states = alive
		}
		// Nothing here bears that name, or nothing has to change.
		add(r, states, "ICRP-stranger", "", wrong)
		add(r, states, "ICCN-stranger CDN-stranger SLI-stranger SLI-status", "", acked)
		add(r, states, "WEN-stranger FSR", "", "arm:hello")
		add(r, states, "FSQ FSQ-stranger", "", "arm:hello send:FSR@1")
		add(r, but(states, "established"), "WEN FSR-unknown", "", "arm:hello")
		add(r, but(states, "established"), "SLI SLI-hold SLI-lifetime SLI-stamp", "", acked)
		add(r, but(states, "established"), "trouble", "", nothing)
		add(r, "none", "ICCN CDN CDN-unnamed CDN-refusal", "", acked)
		add(r, "none", "ICRP ICRP-proof ICRP-broken", "", wrong)
		add(r, "none", "close", "", nothing)
		add(r, "none established", "lost", "none>none established>suspended", lost+" save")

		add(r, "established", "ICRP ICRP-proof ICRP-broken ICCN", "none", "arm:hello arm:hello SessionDown/16 save send:CDN/16@1")
		add(r, "established", "CDN CDN-unnamed CDN-refusal", "none", "arm:hello arm:hello SessionDown/3 save send:ACK@1")
		add(r, "established", "WEN", "", "arm:hello TroubleReported")
		add(r, "established", "FSR-unknown", "none", "arm:hello arm:hello SessionDown/1.9 save") // silently: no CDN
		add(r, "established", "close", "none", "arm:hello SessionDown/3 save send:CDN/3@1")
		add(r, "established", "trouble", "", "send:WEN@1")

		add(r, "suspended", sessionMessages+" trouble lost", "", nothing)
		add(r, "suspended", "open", "", "SessionRefused/1")
		add(r, "suspended", "close", "none", "SessionDown/3 save")
	}

	i := Initiator
	add(i, live, "ICRQ ICRQ-same ICRQ-pwtype ICRQ-proof ICRQ-refused ICRQ-broken", "", wrong)
	add(i, live, "open", "none>wait-reply", "save send:ICRQ@1")
	add(i, live+" suspended", "routes lifetime stamp", "", nothing)
	add(i, "none wait-reply", "hold", "", nothing)
	add(i, "established", "hold", "", "save send:SLI@1")
	add(i, "suspended", "hold", "", "save")
	add(i, "wait-reply", "ICRP", "established", "arm:hello ask:setup arm:hello save send:ICCN@1 SessionUp")
	add(i, "wait-reply", "ICRP-proof", "none", "arm:hello SessionRefused/2.7 save send:CDN/2.7@1")
	add(i, "wait-reply", "ICRP-broken", "none", "arm:hello ask:setup save send:CDN/2.15@1 SessionRefused/2.15")
	add(i, "wait-reply", "ICCN", "none", "arm:hello SessionRefused/16 save send:CDN/16@1")
	add(i, "wait-reply", "CDN CDN-refusal", "none", "arm:hello SessionRefused/3 save send:ACK@1")
	add(i, "wait-reply", "CDN-unnamed", "", acked) // by a name that was never told
	add(i, "wait-reply", "close", "none", "SessionRefused/3 save send:CDN/3@1")
	add(i, "wait-reply", "lost", "none", "drop@1 disarm:hello arm:grace SessionRefused/1 WasSuspended save")
	add(i, "established", "SLI", "", "arm:hello ask:change TermsChanged save send:ACK@1")
	add(i, "established", "SLI-lifetime", "", "arm:hello LifetimeChanged save send:ACK@1")
	add(i, "established", "SLI-stamp", "", "arm:hello StampTold save send:ACK@1")
	add(i, "established", "SLI-hold", "", acked) // the node's to ask for

	g := Responder
	add(g, "none", "ICRQ ICRQ-same", "wait-connect", "arm:hello ask:session ask:setup arm:hello save send:ICRP@1")
	add(g, "wait-connect established", "ICRQ", "", "arm:hello ask:session ask:setup save send:ICRP@1") // another session
	add(g, "wait-connect established", "ICRQ-same", "none", "arm:hello arm:hello SessionDown/2 save send:CDN/2@1")
	add(g, alive, "ICRQ-pwtype", "", "arm:hello save send:CDN/14@1")
	add(g, alive, "ICRQ-proof", "", "arm:hello save send:CDN/2.7@1")
	add(g, alive, "ICRQ-refused", "", "arm:hello ask:session save send:CDN/3.2@1")
	add(g, alive, "ICRQ-broken", "", "arm:hello ask:session ask:setup save send:CDN/2.15@1 SessionDown/2.15")
	add(g, alive, "open", "", "SessionRefused/1")
	add(g, "none", "routes lifetime stamp", "", nothing)
	add(g, "none wait-connect established suspended", "hold", "", nothing)
	add(g, "wait-connect established", "lifetime stamp", "", "save send:SLI@1")
	add(g, "suspended", "lifetime stamp", "", "save")
	add(g, "established", "routes", "", "save send:CHO@1")
	add(g, "wait-connect suspended", "routes", "", "ChangeRefused/4.34")
	add(g, "wait-connect", "ICRP ICRP-proof ICRP-broken", "none", "arm:hello arm:hello SessionDown/16 save send:CDN/16@1")
	add(g, "wait-connect", "ICCN", "established", "arm:hello SessionUp save send:ACK@1")
	add(g, "wait-connect", "CDN CDN-unnamed CDN-refusal", "none", "arm:hello arm:hello SessionDown/3 save send:ACK@1")
	add(g, "wait-connect", "close", "none", "arm:hello SessionDown/3 save send:CDN/3@1")
	add(g, "wait-connect", "lost", "", lost+" save") // its ICRP is sent again after a resume
	add(g, "established", "SLI-hold", "", "arm:hello HoldChanged save send:ACK@1")
	add(g, "established", "SLI SLI-lifetime SLI-stamp", "none", "arm:hello arm:hello SessionDown/2.35 save send:CDN/2.35@1")
	return rows
}

func sessionEvents() []string { return strings.Fields(sessionMessages + " " + sessionLocal) }

func TestSessionTableIsWhole(t *testing.T) {
	pairs := pairsOf(t, sessionRows())
	for _, s := range sessionSituations {
		for _, e := range sessionEvents() {
			key := fmt.Sprintf("%v %s", s, e)
			if _, ok := pairs[key]; !ok {
				t.Errorf("nobody wrote down what happens at %s", key)
			}
			delete(pairs, key)
		}
	}
	for key := range pairs {
		t.Errorf("the table speaks of %q, which is no pair", key)
	}
}

func TestSessionTable(t *testing.T) {
	pairs := pairsOf(t, sessionRows())
	for _, s := range sessionSituations {
		for _, e := range sessionEvents() {
			key := fmt.Sprintf("%v %s", s, e)
			if want, ok := pairs[key]; ok { // else TestSessionTableIsWhole says so
				t.Run(key, func(t *testing.T) { s.trySession(t, e, want) })
			}
		}
	}
}

// sessionState is the state of the first session.
func (s *side) sessionState() string {
	if ss := s.m.Sessions(); len(ss) > 0 {
		return ss[0].State.String()
	}
	return "none"
}

// nextOf reads the next state of a row: one word, or one "from>to" for each
// situation that does not stay as it is.
func (r row) nextOf(state string) string {
	for _, w := range strings.Fields(r.next) {
		from, to, ok := strings.Cut(w, ">")
		switch {
		case !ok:
			return w
		case from == state:
			return to
		}
	}
	return state
}

func (s situation) trySession(t *testing.T, event string, want row) {
	p := s.build(t)
	under := p.node
	if s.role == Responder {
		under = p.gateway
	}
	if got := under.sessionState(); got != s.name {
		t.Fatalf("it begins in state %s", got)
	}
	under.trace = nil
	p.happenToSession(s, under, event)
	next := want.nextOf(s.name)
	if got := strings.Join(under.trace, " "); got != want.actions || under.sessionState() != next {
		t.Fatalf("\n got %s, %q\nwant %s, %q", under.sessionState(), got, next, want.actions)
	}
	answered := strings.Contains(want.actions, "send:CDN") || strings.Contains(want.actions, "send:FSR")
	if next == s.name && !answered && event != "open" && event != "ICRQ" && event != "lost" {
		p.sessionGoesOn(s)
	}
}

// sessionGoesOn checks that what changed nothing did no harm.
func (p *pair) sessionGoesOn(s situation) {
	p.t.Helper()
	if s.name == "none" {
		p.open()
	}
	if s.name == "suspended" {
		p.connect()
	}
	p.carry(-1)
	p.wantUp()
}

// happenToSession lets one event happen to the machine under test.
func (p *pair) happenToSession(s situation, under *side, event string) {
	p.t.Helper()
	peer := p.gateway
	if under == p.gateway {
		peer = p.node
	}
	name, variant, _ := strings.Cut(event, "-")
	switch {
	case event == "lost":
		under.step(Detached{1, time.Now(), errors.New("reset by peer")})
		return
	case strings.Contains(" "+sessionLocal+" ", " "+event+" "):
		p.locally(under, event)
		return
	case variant == "refused":
		under.refuse = &wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseNetworkRight}
	case variant == "broken":
		under.broken = &wire.Result{Code: wire.CDNError, Error: wire.ErrorVendor, Cause: wire.CauseLocal}
	}
	q := p.owed(peer, 1, name)
	if q == nil || name == "ICRQ" || variant == "stranger" {
		q = &wire.Packet{ConnID: under.m.rec.LocalID, Ns: under.m.rec.Nr, Nr: under.m.rec.Ns, Message: p.sessionMessage(under, name, variant)}
		if s.cur != 0 && numbered(q.Message.Type()) {
			p.squeezeIn(peer)
		}
	}
	if r, ok := q.Message.(*wire.ICRP); ok && variant == "proof" {
		r.KeyProof[0] ^= 1
	}
	under.step(Received{1, q})
	under.refuse, under.broken = nil, nil
}

// squeezeIn numbers what peer has sent and not delivered as if it had sent a
// message before.
func (p *pair) squeezeIn(peer *side) {
	for _, s := range peer.out {
		if numbered(s.Packet.Message.Type()) {
			s.Packet.Ns++
		}
	}
	peer.m.rec.Ns++
}

// sessionMessage makes a message up that speaks of the first session, or of one
// that does not exist.
func (p *pair) sessionMessage(under *side, name, variant string) wire.Message {
	s := Session{LocalID: 5, RemoteID: 6}
	if len(under.m.sessions) > 0 && variant != "stranger" {
		s = *under.m.sessions[0]
		if s.RemoteID == 0 { // not told yet
			s.RemoteID = p.gateway.m.sessions[0].LocalID
		}
	}
	if name == "ICRQ" {
		id := uint32(4242)
		if variant == "same" {
			id = s.RemoteID
		}
		q := p.request(under, id)
		switch variant {
		case "pwtype":
			q.PWType = 5
		case "proof":
			q.KeyProof[0] ^= 1
		}
		return q
	}
	msg := aboutSession(p.t, name, s)
	switch m := msg.(type) {
	case *wire.CDN:
		switch variant {
		case "unnamed":
			m.RemoteID = 0
		case "refusal":
			m.LocalID = 0
		}
	case *wire.SLI:
		switch variant {
		case "status":
			m.HasRoutes, m.CircuitStatus = false, &wire.CircuitStatus{Active: true}
		case "hold":
			m.HasRoutes, m.CircuitStatus = false, &wire.CircuitStatus{}
		case "lifetime":
			m.HasRoutes, m.Lifetime = false, &wire.Lifetime{Reauth: time.Hour}
		case "stamp":
			m.HasRoutes, m.Stamp = false, wire.Stamp{2}
		}
	case *wire.FSR:
		if variant == "unknown" {
			m.Sessions[0] = wire.SessionPair{LocalID: s.RemoteID}
		}
	}
	return msg
}

// The two ends of the fixtures differ in everything, or a swapped direction
// would pass.
func TestFixturesDiffer(t *testing.T) {
	p := established(t)
	n, g := p.node.m.Sessions()[0], p.gateway.m.Sessions()[0]
	if n.LocalID == n.RemoteID || p.node.m.rec.LocalID == p.gateway.m.rec.LocalID || n.PublicKey == n.PeerKey || n.Addresses[0] == n.Peers[0] {
		t.Errorf("both ends are alike: %+v and %+v", n, g)
	}
	if nodeID == gatewayID || nodeBoot == gatewayBoot || n.State != session.Established {
		t.Error("both ends are alike")
	}
}
