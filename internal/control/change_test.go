package control

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

var changeSituations = []situation{
	{Initiator, "none", 1, 0, offerAt(Initiator, -1)},
	{Initiator, "open", 1, 0, offerAt(Initiator, 0)},
	{Initiator, "open-suspended", 0, 0, offerCut(Initiator)},
	{Responder, "none", 1, 0, offerAt(Responder, -1)},
	{Responder, "open", 1, 0, offerAt(Responder, 0)},
	{Responder, "open-suspended", 0, 0, offerCut(Responder)},
}

// offer makes the offer that a role may make.
func (s *side) offer() {
	id := s.m.Sessions()[0].LocalID
	if s.m.cfg.Role == Initiator {
		s.step(ExtendSession{LocalID: id, Left: time.Hour})
		return
	}
	s.step(OfferChange{LocalID: id, Terms: Terms{MTU: 1400}})
}

func (p *pair) side(role Role) *side {
	if role == Initiator {
		return p.node
	}
	return p.gateway
}

// offerAt is an established pair in which one end's offer was carried n messages
// far; -1: none was made.
func offerAt(role Role, n int) func(*testing.T) *pair {
	return func(t *testing.T) *pair {
		p := established(t)
		if n >= 0 {
			p.side(role).offer()
			p.carry(n)
		}
		return p
	}
}

func offerCut(role Role) func(*testing.T) *pair {
	return func(t *testing.T) *pair {
		p := offerAt(role, 0)(t)
		p.cut()
		return p
	}
}

const changeEvents = "CHO CHO-routes CHO-extend CHO-refresh CHO-both CHO-refused CHO-stranger CHA CHA-extend CHA-refresh CHA-refused CHA-other CHA-stranger offer extend refresh lost close"

func changeRows() (rows []row) {
	add := func(role Role, situations, events, next, actions string) {
		rows = append(rows, row{role, situations, events, next, actions})
	}
	const (
		acked  = "arm:hello save send:ACK@1"
		wrong  = "arm:hello arm:hello SessionDown/16 save send:CDN/16@1"
		others = "arm:hello save send:CHA/3.35@1"
	)
	for _, r := range both {
		add(r, "none open", "CHO-stranger CHA-stranger", "", acked)
		add(r, "none open", "CHO-both", "", others)    // nobody may change both
		add(r, "none open", "CHO-refresh", "", others) // the session has no lifetime
		add(r, "none", "CHA CHA-extend CHA-refresh CHA-refused CHA-other", "gone", wrong)
		add(r, "open", "CHA-other CHA-refresh", "gone", wrong)
		add(r, "none open open-suspended", "refresh", "", nothing)
		add(r, "open", "CHA-refused", "none", "arm:hello ChangeRefused/3.6 save send:ACK@1")
		add(r, "none open", "close", "gone", "arm:hello SessionDown/3 save send:CDN/3@1")
		add(r, "open-suspended", "close", "gone", "SessionDown/3 save")
		add(r, "none open", "lost", "none>none-suspended open>open-suspended", lost+" save")
		add(r, "open-suspended", "CHO CHO-routes CHO-extend CHO-refresh CHO-both CHO-refused CHO-stranger CHA CHA-extend CHA-refresh CHA-refused CHA-other CHA-stranger lost", "", nothing)
	}
	i := Initiator
	add(i, "none open", "CHO CHO-routes", "", "arm:hello ask:change save send:CHA@1 TermsChanged")
	add(i, "none open", "CHO-refused", "", "arm:hello ask:change save send:CHA/3.6@1 ChangeRefused/3.6")
	add(i, "none open", "CHO-extend", "", others) // it is not the gateway's to ask for
	add(i, "open", "CHA-extend", "none", "arm:hello SessionExtended save send:ACK@1")
	add(i, "open", "CHA", "gone", wrong) // how long?
	add(i, "none open open-suspended", "offer", "", nothing)
	add(i, "none", "extend", "open", "save send:CHO@1")
	add(i, "open open-suspended", "extend", "", "ChangeRefused/4.34")

	g := Responder
	add(g, "none open", "CHO CHO-routes CHO-refused", "", others)
	add(g, "none open", "CHO-extend", "", "arm:hello ask:extend save send:CHA@1 SessionExtended")
	add(g, "open", "CHA", "none", "arm:hello TermsChanged save send:ACK@1")
	add(g, "open", "CHA-extend", "gone", wrong)
	add(g, "none open open-suspended", "extend", "", nothing)
	add(g, "none", "offer", "open", "save send:CHO@1")
	add(g, "open open-suspended", "offer", "", "ChangeRefused/4.34")
	return rows
}

func TestChangeTableIsWhole(t *testing.T) {
	wholeTable(t, pairsOf(t, changeRows()), changeSituations, changeEvents)
}

// wholeTable fails on a pair of a situation and an event that nobody wrote down.
func wholeTable(t *testing.T, pairs map[string]row, situations []situation, events string) {
	t.Helper()
	for _, s := range situations {
		for _, e := range strings.Fields(events) {
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

func TestChangeTable(t *testing.T) {
	pairs := pairsOf(t, changeRows())
	for _, s := range changeSituations {
		for _, e := range strings.Fields(changeEvents) {
			key := fmt.Sprintf("%v %s", s, e)
			if want, ok := pairs[key]; ok { // else TestChangeTableIsWhole says so
				t.Run(key, func(t *testing.T) { s.tryChange(t, e, want) })
			}
		}
	}
}

// offering is how far an offer of the first session is.
func (s *side) offering() string {
	if len(s.m.sessions) == 0 {
		return "gone"
	}
	name := "none"
	if s.m.sessions[0].Offer != nil {
		name = "open"
	}
	if s.m.State() == session.Suspended {
		name += "-suspended"
	}
	return name
}

func (s situation) tryChange(t *testing.T, event string, want row) {
	p := s.build(t)
	under := p.side(s.role)
	if got := under.offering(); got != s.name {
		t.Fatalf("it begins with %s", got)
	}
	under.trace = nil
	p.happenToTerms(under, event)
	next := want.nextOf(s.name)
	if got := strings.Join(under.trace, " "); got != want.actions || under.offering() != next {
		t.Fatalf("\n got %s, %q\nwant %s, %q", under.offering(), got, next, want.actions)
	}
}

// happenToTerms lets one event happen to the machine under test.
func (p *pair) happenToTerms(under *side, event string) {
	p.t.Helper()
	s := *under.m.sessions[0]
	id := session.NewID()
	if s.Offer != nil {
		id = s.Offer.RequestID
	}
	refused := &wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseRevoked}
	hour := &wire.Lifetime{Absolute: time.Hour}
	var msg wire.Message
	switch name, variant, _ := strings.Cut(event, "-"); name {
	case "lost":
		under.step(Detached{1, time.Now(), errors.New("reset by peer")})
		return
	case "close", "offer", "extend", "refresh":
		p.locally(under, event)
		return
	case "CHO":
		m := &wire.ChangeOffer{LocalID: s.RemoteID, RemoteID: s.LocalID, RequestID: session.NewID(), MTU: 1300}
		msg = m
		switch variant {
		case "routes":
			m.MTU, m.HasRoutes = 0, true
		case "extend":
			m.MTU, m.Lifetime = 0, hour
		case "refresh":
			m.MTU, m.Expires = 0, &wire.Expires{After: time.Hour, Refresher: other(under.m.cfg.Role).as()}
		case "both":
			m.Lifetime = hour
		case "refused":
			under.unchanged = refused
		case "stranger":
			m.LocalID, m.RemoteID = 5, 6
		}
	case "CHA":
		m := &wire.ChangeAnswer{LocalID: s.RemoteID, RemoteID: s.LocalID, RequestID: id}
		msg = m
		switch variant {
		case "extend":
			m.Lifetime = hour
		case "refresh":
			m.Expires = &wire.Expires{After: time.Hour, Refresher: under.m.cfg.Role.as()}
		case "refused":
			m.Result = refused
		case "other":
			m.RequestID = session.NewID()
		case "stranger":
			m.LocalID, m.RemoteID = 5, 6
		}
	}
	under.step(Received{1, &wire.Packet{ConnID: under.m.rec.LocalID, Ns: under.m.rec.Nr, Nr: under.m.rec.Ns, Message: msg}})
}

// TestChangeAfterAnAccidentAnywhere cuts the transport, or restarts one end,
// after each message of an offer: afterwards both ends have the new terms.
func TestChangeAfterAnAccidentAnywhere(t *testing.T) {
	moved := Terms{
		Addresses: []netip.Addr{netip.MustParseAddr("10.78.0.9")}, Peers: []netip.Addr{netip.MustParseAddr("10.78.0.1")},
		MTU: 1300, Timers: wire.Timers{Hello: 5 * time.Second, Misses: 2, Grace: time.Hour},
		HasRoutes: true, Routes: []netip.Prefix{netip.MustParsePrefix("10.78.0.0/24")},
	}
	for n := range 4 {
		for _, accident := range []string{"cut", "node", "gateway"} {
			p := established(t)
			p.gateway.step(OfferChange{LocalID: p.gateway.m.Sessions()[0].LocalID, Terms: moved})
			if before := p.gateway.m.Sessions()[0]; before.MTU == 1300 {
				t.Fatal("an offer has changed the session before it was taken")
			}
			p.carry(n)
			p.cut()
			switch accident {
			case "node":
				p.node.restart(nodeBoot)
			case "gateway":
				p.gateway.restart(gatewayBoot)
			}
			p.connect()
			p.carry(-1)
			for _, s := range []*side{p.node, p.gateway} {
				got := s.m.Sessions()[0]
				if !slices.Equal(got.Addresses, moved.Addresses) || !slices.Equal(got.Peers, moved.Peers) || got.MTU != moved.MTU || got.Timers != moved.Timers || !slices.Equal(got.Routes, moved.Routes) || got.Offer != nil {
					t.Errorf("%s after %d messages, %s: %+v", accident, n, s.name, got)
				}
				if s.m.Timers() != moved.Timers {
					t.Errorf("%s: the connection's timers are %+v", s.name, s.m.Timers())
				}
			}
		}
	}
}

// TestExtension: what the gateway grants both ends know, and its record how much
// that is more than the network has.
func TestExtension(t *testing.T) {
	p := established(t)
	p.node.offer()
	p.carry(-1)
	for _, s := range []*side{p.node, p.gateway} {
		if got := s.m.Sessions()[0].Lifetime.Absolute; got != time.Hour {
			t.Errorf("%s: %v is left, want an hour", s.name, got)
		}
	}
	if got := p.gateway.saved.Sessions[0].Extended; got != time.Hour {
		t.Errorf("extended by %v in the record, want what the handler said", got)
	}
}
