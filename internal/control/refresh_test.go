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

func other(r Role) Role {
	if r == Initiator {
		return Responder
	}
	return Initiator
}

// living is an established pair whose session has a lifetime of an hour that the
// end of that role refreshes.
func living(t *testing.T, refresher Role) *pair {
	t.Helper()
	p := newPair(t)
	p.node.expires = wire.Expires{After: time.Hour}
	p.gateway.expires = wire.Expires{After: time.Hour, Refresher: refresher.as()}
	p.connect()
	p.carry(-1)
	p.open()
	p.carry(-1)
	p.wantUp()
	return p
}

// refreshedBy builds a pair for a table: what is under test has the role, the
// session is refreshed by refresher, whose refresh was carried n messages far;
// -1: there is none.
func refreshedBy(refresher Role, n int, cut bool) func(*testing.T) *pair {
	return func(t *testing.T) *pair {
		p := living(t, refresher)
		if n >= 0 {
			s := p.side(refresher)
			s.step(RefreshSession{LocalID: s.m.Sessions()[0].LocalID, After: time.Hour})
			p.carry(n)
		}
		if cut {
			p.cut()
		}
		return p
	}
}

// The situations: this end refreshes, and has an offer open or not, or the other
// end does.
func refreshSituations() (all []situation) {
	for _, r := range both {
		all = append(all,
			situation{r, "mine-none", 1, 0, refreshedBy(r, -1, false)},
			situation{r, "mine-open", 1, 0, refreshedBy(r, 0, false)},
			situation{r, "mine-open-suspended", 0, 0, refreshedBy(r, 0, true)},
			situation{r, "mine-none-suspended", 0, 0, refreshedBy(r, -1, true)},
			situation{r, "theirs-none", 1, 0, refreshedBy(other(r), -1, false)},
		)
	}
	return all
}

const refreshEvents = "CHO-refresh CHO-other CHO-never CHO-mixed CHO-refused CHA-refresh CHA-longer CHA-other CHA CHA-short CHA-refused refresh lost"

func refreshRows() (rows []row) {
	const (
		wrong  = "arm:hello arm:hello SessionDown/16 save send:CDN/16@1"
		others = "arm:hello save send:CHA/3.35@1"
	)
	for _, r := range both {
		add := func(situations, events, next, actions string) {
			rows = append(rows, row{r, situations, events, next, actions})
		}
		add("theirs-none", "CHO-refresh", "", "arm:hello ask:refresh save send:CHA@1 SessionRefreshed")
		add("theirs-none", "CHO-refused", "", "arm:hello ask:refresh save send:CHA/3.6@1")
		add("theirs-none", "CHO-other CHO-never CHO-mixed", "", others) // the named refresher stays, and lets the session live
		add("mine-none mine-open", "CHO-refresh CHO-refused CHO-other CHO-never CHO-mixed", "", others)
		add("theirs-none mine-none", "CHA-refresh CHA-longer CHA-other CHA CHA-short CHA-refused", "gone", wrong)
		add("theirs-none", "refresh", "", nothing)
		add("mine-none", "refresh", "mine-open", "save send:CHO@1")
		add("mine-open", "refresh", "", "ChangeRefused/4.34")
		add("mine-none-suspended mine-open-suspended", "refresh", "", "ChangeRefused/4.34") // the resume will do
		add("mine-open", "CHA-refresh", "mine-none", "arm:hello SessionRefreshed save send:ACK@1")
		add("mine-open", "CHA-longer CHA-other CHA", "gone", wrong) // nothing that was asked for
		add("mine-open", "CHA-short", "", "arm:hello save send:CHO@1")
		add("mine-open", "CHA-refused", "mine-none", "arm:hello ChangeRefused/3.6 save send:ACK@1")
		add("mine-none mine-open theirs-none", "lost", "mine-none>mine-none-suspended mine-open>mine-open-suspended theirs-none>theirs-none-suspended", lost+" save")
		add("mine-none-suspended mine-open-suspended", strings.TrimSuffix(refreshEvents, " refresh lost")+" lost", "", nothing)
	}
	return rows
}

func TestRefreshTableIsWhole(t *testing.T) {
	wholeTable(t, pairsOf(t, refreshRows()), refreshSituations(), refreshEvents)
}

func TestRefreshTable(t *testing.T) {
	pairs := pairsOf(t, refreshRows())
	for _, s := range refreshSituations() {
		for _, e := range strings.Fields(refreshEvents) {
			key := fmt.Sprintf("%v %s", s, e)
			if want, ok := pairs[key]; ok { // else TestRefreshTableIsWhole says so
				t.Run(key, func(t *testing.T) { s.tryRefresh(t, e, want) })
			}
		}
	}
}

func (s *side) refreshing() string {
	if len(s.m.sessions) == 0 {
		return "gone"
	}
	if s.m.sessions[0].Expires.Refresher == s.m.cfg.Role.as() {
		return "mine-" + s.offering()
	}
	return "theirs-" + s.offering()
}

func (s situation) tryRefresh(t *testing.T, event string, want row) {
	p := s.build(t)
	under := p.side(s.role)
	if got := under.refreshing(); got != s.name {
		t.Fatalf("it begins with %s", got)
	}
	under.trace = nil
	p.happenToLifetime(under, event)
	next := want.nextOf(s.name)
	if got := strings.Join(under.trace, " "); got != want.actions || under.refreshing() != next {
		t.Fatalf("\n got %s, %q\nwant %s, %q", under.refreshing(), got, next, want.actions)
	}
}

// happenToLifetime lets one event happen to the machine under test.
func (p *pair) happenToLifetime(under *side, event string) {
	p.t.Helper()
	s := *under.m.sessions[0]
	id := session.NewID()
	if s.Offer != nil {
		id = s.Offer.RequestID
	}
	own, theirs := under.m.cfg.Role.as(), other(under.m.cfg.Role).as()
	var msg wire.Message
	switch name, variant, _ := strings.Cut(event, "-"); name {
	case "lost":
		under.step(Detached{1, time.Now(), errors.New("reset by peer")})
		return
	case "refresh":
		p.locally(under, event)
		return
	case "CHO":
		m := &wire.ChangeOffer{LocalID: s.RemoteID, RemoteID: s.LocalID, RequestID: id, Expires: &wire.Expires{After: time.Hour, Refresher: theirs}}
		msg = m
		switch variant {
		case "other":
			m.Expires.Refresher = own
		case "never":
			m.Expires.After = 0
		case "mixed":
			m.MTU = 1300
		case "refused":
			under.unchanged = &wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseRevoked}
		}
	case "CHA":
		m := &wire.ChangeAnswer{LocalID: s.RemoteID, RemoteID: s.LocalID, RequestID: id}
		msg = m
		switch variant {
		case "refresh":
			m.Expires = &wire.Expires{After: time.Hour, Refresher: own}
		case "longer":
			m.Expires = &wire.Expires{After: 2 * time.Hour, Refresher: own}
		case "other":
			m.Expires = &wire.Expires{After: time.Hour, Refresher: theirs}
		case "short":
			m.Result = tooShort(2 * time.Hour)
		case "refused":
			m.Result = &wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseRevoked}
		}
	}
	under.step(Received{1, &wire.Packet{ConnID: under.m.rec.LocalID, Ns: under.m.rec.Nr, Nr: under.m.rec.Ns, Message: msg}})
}

func tooShort(floor time.Duration) *wire.Result {
	return &wire.Result{Code: wire.CDNAdministrative, Cause: wire.CauseTooShort, Floor: floor}
}

// TestLifetimeIsAgreed: what ICRQ asks for and ICRP answers both ends have, in
// their records too; a node that hears of none has none.
func TestLifetimeIsAgreed(t *testing.T) {
	node, gateway := wire.RefresherNode, wire.RefresherGateway
	for _, tt := range []struct {
		asked, granted wire.Expires
		up             bool
	}{
		{wire.Expires{}, wire.Expires{}, true},
		{wire.Expires{}, wire.Expires{After: time.Hour, Refresher: node}, true},
		{wire.Expires{After: time.Hour}, wire.Expires{After: time.Minute, Refresher: gateway}, true},
		{wire.Expires{After: time.Hour, Refresher: node}, wire.Expires{After: time.Hour, Refresher: node}, true},
		{wire.Expires{After: time.Hour, Refresher: node}, wire.Expires{}, true}, // as a release before answers
		{wire.Expires{After: time.Hour, Refresher: node}, wire.Expires{After: time.Hour, Refresher: gateway}, false},
		{wire.Expires{After: time.Hour}, wire.Expires{After: 2 * time.Hour, Refresher: gateway}, false},
		{wire.Expires{After: time.Hour}, wire.Expires{After: time.Hour}, false}, // by whom?
	} {
		p := newPair(t)
		p.node.expires, p.gateway.expires = tt.asked, tt.granted
		p.connect()
		p.carry(-1)
		p.open()
		p.carry(-1)
		for _, s := range []*side{p.node, p.gateway} {
			if up := len(s.m.Sessions()) == 1; up != tt.up {
				t.Errorf("%+v answered by %+v: %s has a session: %v, want %v", tt.asked, tt.granted, s.name, up, tt.up)
			} else if up && s.saved.Sessions[0].Expires != tt.granted {
				t.Errorf("%+v answered by %+v: %s has %+v on disk", tt.asked, tt.granted, s.name, s.saved.Sessions[0].Expires)
			}
		}
	}
}

// TestAskedAgainWithTheFloor: a lifetime that is refused as too short is asked for
// again with the least, once.
func TestAskedAgainWithTheFloor(t *testing.T) {
	for _, tt := range []struct {
		name   string
		asked  time.Duration
		floors []time.Duration // of the refusals, one after the other
		want   time.Duration   // agreed; 0: there is no session
	}{
		{"too short", time.Minute, []time.Duration{time.Hour}, time.Hour},
		{"too short, and again", time.Minute, []time.Duration{time.Hour, 2 * time.Hour}, 0},
		{"refused with a floor that is none", time.Hour, []time.Duration{time.Minute}, 0},
		{"refused with no floor", time.Minute, []time.Duration{0}, 0},
		{"nothing was asked for", 0, []time.Duration{time.Hour}, 0},
	} {
		p := newPair(t)
		p.connect()
		p.carry(-1)
		p.node.expires = wire.Expires{After: tt.asked}
		p.open()
		var requests int
		for _, f := range tt.floors {
			p.gateway.refuse = tooShort(f)
			for len(p.node.out) > 0 && p.gateway.refuse != nil { // the request, and whatever comes before it
				if _, ok := p.node.out[0].Packet.Message.(*wire.ICRQ); ok {
					requests++
				}
				p.carry(1)
			}
			p.carry(len(p.gateway.out))
		}
		p.gateway.refuse = nil
		for _, s := range p.node.out {
			if q, ok := s.Packet.Message.(*wire.ICRQ); ok {
				p.gateway.expires = wire.Expires{After: q.Expires.After, Refresher: wire.RefresherNode}
			}
		}
		p.carry(-1)
		if tt.want == 0 {
			if p.node.said("SessionRefused") != 1 || len(p.node.m.Sessions()) != 0 {
				t.Errorf("%s: notices %v, want the refusal once", tt.name, p.node.notices)
			}
			continue
		}
		p.wantUp()
		if got := p.node.m.Sessions()[0].Expires.After; got != tt.want {
			t.Errorf("%s: the lifetime is %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestRefreshIsRaisedToTheFloor: a refresh, too, is asked for once more.
func TestRefreshIsRaisedToTheFloor(t *testing.T) {
	for _, r := range both {
		p := living(t, r)
		s, peer := p.side(r), p.side(other(r))
		peer.unchanged = tooShort(2 * time.Hour)
		s.step(RefreshSession{LocalID: s.m.Sessions()[0].LocalID, After: time.Minute})
		for peer.said("SessionRefreshed") == 0 && len(s.out)+len(peer.out) > 0 {
			p.carry(1)
			if len(peer.out) > 0 { // it has refused
				peer.unchanged = nil
			}
		}
		p.carry(-1)
		for _, end := range []*side{p.node, p.gateway} {
			if got := end.m.Sessions()[0].Expires.After; got != 2*time.Hour || end.said("SessionRefreshed") != 1 {
				t.Errorf("refreshed by %v: %s has %v, notices %v", r, end.name, got, end.notices)
			}
		}
	}
}

// TestRefreshAfterAnAccidentAnywhere: a refresh that was cut off anywhere, or one
// of whose ends was restarted, is answered after the resume.
func TestRefreshAfterAnAccidentAnywhere(t *testing.T) {
	for _, r := range both {
		for n := range 4 {
			for _, accident := range []string{"cut", "node", "gateway"} {
				p := living(t, r)
				p.side(other(r)).longest = 10 * time.Minute
				p.side(r).step(RefreshSession{LocalID: p.side(r).m.Sessions()[0].LocalID, After: time.Hour})
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
				p.wantUp()
				for _, s := range []*side{p.node, p.gateway} {
					if got := s.m.Sessions()[0]; got.Expires.After != 10*time.Minute || got.Offer != nil {
						t.Errorf("%v, %s after %d messages: %s has %+v, offer %+v", r, accident, n, s.name, got.Expires, got.Offer)
					}
				}
			}
		}
	}
}

// TestReleaseBefore: to a peer that reads neither in an offer, routes are told and
// no refresh is sent.
func TestReleaseBefore(t *testing.T) {
	p := living(t, Responder)
	p.gateway.m.peerCapabilities &^= CapOffers
	p.node.trace = nil
	id := p.gateway.m.Sessions()[0].LocalID
	p.gateway.step(OfferChange{LocalID: id, Terms: Terms{HasRoutes: true}})
	p.gateway.step(RefreshSession{LocalID: id, After: time.Hour})
	p.carry(-1)
	for _, s := range []*side{p.node, p.gateway} {
		if got := s.m.Sessions()[0]; len(got.Routes) != 0 || got.Offer != nil || s.said("TermsChanged") != 1 || s.said("SessionRefreshed") != 0 {
			t.Errorf("%s has routes %v, offer %+v, notices %v", s.name, got.Routes, got.Offer, s.notices)
		}
	}
	if trace := strings.Join(p.node.trace, " "); strings.Contains(trace, "CHA") {
		t.Errorf("what was told is answered: %s", trace)
	}
	p.wantUp()
}
