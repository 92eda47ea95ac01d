package control

import (
	"net/netip"
	"testing"
	"time"

	"tunneld/internal/control/wire"
	"tunneld/internal/session"
)

// requests notes the ids of wishes that a side was told of, by notice.
func (s *side) requests() map[string]session.ID {
	ids := map[string]session.ID{}
	s.watch = func(_ Event, out []Action) {
		for _, a := range out {
			switch a := a.(type) {
			case SessionUp:
				ids["up"] = a.Session.RequestID
			case SessionDown:
				ids["down"] = a.RequestID
			case SessionRefused:
				ids["refused"] = a.RequestID
			case TermsChanged:
				ids["routes"] = a.RequestID
			case HoldChanged:
				ids["hold"] = a.RequestID
			case LifetimeChanged:
				ids["lifetime"] = a.RequestID
			case Ended:
				ids["ended"] = a.RequestID
			}
		}
	}
	return ids
}

// TestRequestIDsAtBothEnds: what one end wished has the same id at the other,
// and a wish without one gets one.
func TestRequestIDsAtBothEnds(t *testing.T) {
	p := newPair(t)
	node, gateway := p.node.requests(), p.gateway.requests()
	p.connect()
	p.carry(-1)
	want := func(what string, told map[string]session.ID, id session.ID) {
		t.Helper()
		if id.IsZero() || told[what] != id {
			t.Errorf("%s: told of %v, want %v", what, told[what], id)
		}
	}
	open := func() session.ID {
		key, public := newKey(t)
		id := session.NewID()
		p.node.step(OpenSession{Network: "office", Label: "office", PrivateKey: key, PublicKey: public, RequestID: id})
		p.carry(-1)
		return id
	}
	up := open()
	want("up", node, up)
	want("up", gateway, up)
	n, g := p.node.m.Sessions()[0].LocalID, p.gateway.m.Sessions()[0].LocalID

	id := session.NewID()
	p.gateway.step(OfferChange{LocalID: g, Terms: Terms{HasRoutes: true, Routes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, RequestID: id})
	p.carry(-1)
	want("routes", node, id)
	want("routes", gateway, id)
	p.gateway.step(ChangeLifetime{LocalID: g, Lifetime: wire.Lifetime{Idle: time.Minute}})
	p.carry(-1)
	want("lifetime", node, node["lifetime"])
	id = session.NewID()
	p.node.step(HoldSession{LocalID: n, Held: true, RequestID: id})
	p.carry(-1)
	want("hold", gateway, id)

	id = session.NewID()
	p.gateway.step(CloseSession{LocalID: g, Result: wire.Result{Code: wire.CDNAdministrative}, RequestID: id})
	p.carry(-1)
	want("down", node, id)
	want("down", gateway, id)
	p.gateway.refuse = &wire.Result{Code: wire.CDNAdministrative}
	want("refused", node, open())

	id = session.NewID()
	p.node.step(Stop{Result: wire.Result{Code: wire.StopShuttingDown}, RequestID: id})
	p.carry(-1)
	want("ended", gateway, id)
	want("ended", node, id)
}
