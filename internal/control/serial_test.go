package control

import (
	"testing"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// TestSerialsOfWishes: of two who wish something of a session as they have seen
// it, the second is refused, and nothing else happens.
func TestSerialsOfWishes(t *testing.T) {
	for name, wish := range map[string]func(id uint32, serial uint64, request session.ID) Event{
		"hold": func(id uint32, serial uint64, request session.ID) Event {
			return HoldSession{LocalID: id, Held: true, RequestID: request, IfSerial: serial}
		},
		"extend": func(id uint32, serial uint64, request session.ID) Event {
			return ExtendSession{LocalID: id, Left: time.Hour, RequestID: request, IfSerial: serial}
		},
		"close": func(id uint32, serial uint64, request session.ID) Event {
			return CloseSession{LocalID: id, Result: wire.Result{Code: wire.CDNAdministrative}, RequestID: request, IfSerial: serial}
		},
	} {
		for _, cut := range []bool{false, true} {
			p := established(t)
			if cut {
				p.cut()
			}
			seen := p.node.m.Sessions()[0]
			if seen.Changes == 0 {
				t.Fatal("an established session is at no serial")
			}
			var told []Outdated
			p.node.watch = func(_ Event, out []Action) {
				for _, a := range out {
					if a, ok := a.(Outdated); ok {
						told = append(told, a)
					}
				}
			}
			first, second := session.NewID(), session.NewID()
			p.node.step(wish(seen.LocalID, seen.Changes, first))
			if len(told) != 0 {
				t.Errorf("%s, cut %v: the first is refused: %+v", name, cut, told)
			}
			p.node.trace = nil
			p.node.step(wish(seen.LocalID, seen.Changes, second))
			if len(told) != 1 || told[0].RequestID != second || told[0].Session.Changes == seen.Changes || len(p.node.trace) != 1 {
				t.Errorf("%s, cut %v: the second comes to %v, told %+v", name, cut, p.node.trace, told)
			}
		}
	}
}

// TestSerialCounts what somebody changes, at both ends and over a restart, and
// nothing that a session does by itself.
func TestSerialCounts(t *testing.T) {
	p := living(t, Responder)
	g, n := p.gateway.m.Sessions()[0], p.node.m.Sessions()[0]
	moves := func(what string, by uint64, do func()) {
		t.Helper()
		before := [2]uint64{p.node.m.Sessions()[0].Changes, p.gateway.m.Sessions()[0].Changes}
		do()
		p.carry(-1)
		for i, s := range []*side{p.node, p.gateway} {
			if got := s.m.Sessions()[0].Changes - before[i]; (got > 0) != (by > 0) {
				t.Errorf("%s: the serial of the %s moves by %d", what, s.name, got)
			}
		}
	}
	moves("a hold", 1, func() { p.node.step(HoldSession{LocalID: n.LocalID, Held: true}) })
	moves("a longer life", 1, func() { p.node.step(ExtendSession{LocalID: n.LocalID, Left: time.Hour}) })
	moves("other terms", 1, func() { p.gateway.step(OfferChange{LocalID: g.LocalID, Terms: Terms{MTU: 1300}}) })
	moves("other deadlines", 1, func() { p.gateway.step(news(g.LocalID)) })
	moves("a refresh", 0, func() { p.gateway.step(RefreshSession{LocalID: g.LocalID, After: time.Hour}) })
	moves("a resume", 0, func() { p.cut(); p.connect() })
	moves("a restart", 0, func() {
		p.cut()
		p.node.restart(nodeBoot)
		p.gateway.restart(gatewayBoot)
		p.connect()
	})
}
