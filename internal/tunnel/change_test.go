package tunnel

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/config"
	"tunneld/internal/control"
	"tunneld/internal/session"
)

// left is how long the data plane of a daemon lets a session live.
func (d *daemon) left(id string) time.Duration { return time.Until(d.engineSession(id).Deadline) }

func near(got, want time.Duration) bool { return got > want-time.Minute && got <= want+time.Second }

func TestExtend(t *testing.T) {
	gw, node := timedPair(t, func(c *config.Timers) { c.Absolute, c.Extend = time.Hour, 90*time.Minute })
	id := established(t, gw, node)
	extend := func(by time.Duration) error {
		_, err := node.m.Extend(t.Context(), "office", by)
		return err
	}
	both := func(want time.Duration) {
		t.Helper()
		wait(t, "both ends to know", func() bool { return near(gw.left(id), want) && near(node.left(id), want) })
	}
	both(time.Hour)
	if err := extend(time.Hour); err != nil {
		t.Fatal(err)
	}
	both(2 * time.Hour)
	if tn := node.tunnel(); !near(time.Until(*tn.ExpiresAt), 2*time.Hour) || *tn.Session != id {
		t.Errorf("status says that it ends at %v", tn.ExpiresAt)
	}
	gw.end()
	gw.run()
	established(t, gw, node)
	both(2 * time.Hour)
	node.end()
	node.run()
	established(t, gw, node)
	both(2 * time.Hour)
	if err := extend(time.Hour); err != nil { // of which half is left
		t.Fatal(err)
	}
	both(150 * time.Minute)
	err := extend(time.Hour)
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.NotAllowed {
		t.Errorf("an extension beyond the network's = %v, want it refused by right", err)
	}
	both(150 * time.Minute)
	for _, d := range []*daemon{gw, node} {
		if n := d.happened("session-extended", "ends at "); n != 1 {
			t.Errorf("%s: %d extensions since its start, want 1", d.cfg.Node.Name, n)
		}
	}
}

func TestExtendRefusals(t *testing.T) {
	gw, node := timedPair(t, func(c *config.Timers) { c.Absolute = time.Hour })
	id := established(t, gw, node)
	_, err := node.m.Extend(t.Context(), "office", time.Hour)
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.NotAllowed {
		t.Errorf("Extend where the network allows none = %v, want it refused by right", err)
	}
	if !near(gw.left(id), time.Hour) || !near(node.left(id), time.Hour) {
		t.Error("a refused extension has changed a deadline")
	}
	wait(t, "both to tell of the refusal", func() bool { return node.happened("change-refused", "") == 1 })
	if err := node.m.Down(t.Context(), "office"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"office", "nowhere"} {
		if _, err := node.m.Extend(t.Context(), name, time.Hour); err == nil {
			t.Errorf("Extend(%s) without a session succeeded", name)
		}
	}
}

func TestNothingToExtend(t *testing.T) {
	gw, node := pair(t)
	established(t, gw, node)
	if _, err := node.m.Extend(t.Context(), "office", time.Hour); err == nil {
		t.Error("a session without an end was extended")
	}
}

// TestChangedConfigurationIsOffered: a gateway that is started with other pools,
// a smaller MTU and other timers offers them to the sessions it has.
func TestChangedConfigurationIsOffered(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	gw.end()
	old := gw.cfg.Networks[0].Pools
	gw.cfg.Networks[0].Pools = []netip.Prefix{netip.MustParsePrefix("10.88.0.0/24"), netip.MustParsePrefix("fd88::/64")}
	gw.cfg.Networks[0].Timers.Grace = 2 * time.Hour
	gw.cfg.Data.MTU = 1300
	gw.run()
	want := []netip.Addr{netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd88::2")}
	wait(t, "the new terms at both ends", func() bool {
		tn, ss := node.tunnel(), gw.sessions()
		return len(ss) == 1 && slices.Equal(tn.Addresses, want) && slices.Equal(ss[0].Addresses, want) && *tn.MTU == 1300
	})
	if got := established(t, gw, node); got != id {
		t.Errorf("session %v, want %v to go on", got, id)
	}
	link, _ := node.host.Link("tnl0")
	if want := hostPrefixes(want); !slices.Equal(link.Addresses, want) || link.MTU != 1300 {
		t.Errorf("the node's interface has %v, MTU %d; want %v, 1300", link.Addresses, link.MTU, want)
	}
	if got := gw.engineSession(id).AllowedIPs; !slices.Equal(got, hostPrefixes(want)) {
		t.Errorf("the gateway's data plane takes %v, want %v", got, hostPrefixes(want))
	}
	for _, d := range []*daemon{gw, node} {
		wait(t, "an event of each change", func() bool {
			return d.happened("session-changed", "MTU 1300") == 1 && d.happened("session-changed", "10.88.0.2") == 1 && d.happened("session-changed", "grace 2h0m0s") == 1
		})
	}
	if ls := gw.m.gateway.networks[0].pool.Leases(); len(ls) != 1 || ls[0].Session.String() != id || !slices.Equal(ls[0].Addresses, want) {
		t.Errorf("leases %+v, want one, of the session, with %v", ls, want)
	}

	// A second time round, back: the address it had rests, and is its own. The
	// interface was made for the MTU it had then, so that is refused, once, and
	// nothing else.
	gw.end()
	gw.cfg.Networks[0].Pools = old
	gw.cfg.Networks[0].Timers.Grace = time.Hour
	gw.cfg.Data.MTU = 1420
	node.end()
	node.run()
	gw.run()
	for _, d := range []*daemon{gw, node} {
		wait(t, "all of it, but the MTU", func() bool {
			return d.happened("session-changed", "10.77.0.2") == 1 && d.happened("session-changed", "grace 1h0m0s") == 1 && d.happened("change-refused", "MTU of 1300") == 1
		})
	}
	if got := established(t, gw, node); got != id {
		t.Errorf("session %v after a refused offer, want %v to go on", got, id)
	}
	want = []netip.Addr{netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("fd77::2")}
	if tn, ss := node.tunnel(), gw.sessions(); !slices.Equal(tn.Addresses, want) || !slices.Equal(ss[0].Addresses, want) || *tn.MTU != 1300 {
		t.Errorf("beside a refused MTU the addresses are %v and %v, the MTU %d; want %v and 1300", tn.Addresses, ss[0].Addresses, *tn.MTU, want)
	}
	if n := len(gw.m.gateway.networks[0].pool.Leases()); n != 1 {
		t.Errorf("%d leases after a refused offer, want 1", n)
	}
}

// TestTermsAreOfferedWhileResuming: the wish to offer comes from within the step
// that resumes, and may be done before the connection's View is of after it.
func TestTermsAreOfferedWhileResuming(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	node.end()
	gw.end()
	gw.cfg.Data.MTU = 1300
	gw.run()
	sid, _ := session.ParseID(id)
	gw.m.gateway.mu.Lock()
	mb := gw.m.gateway.members.byID[sid]
	mb.state = session.Established
	gw.m.gateway.mu.Unlock()
	mb.conn.offerTerms(t.Context())
	v, err := mb.conn.View()
	if err != nil {
		t.Fatal(err)
	}
	if s := v.Sessions[0]; s.Offer == nil || s.Offer.MTU != 1300 {
		t.Errorf("the session has the offer %+v, want the MTU of 1300", s.Offer)
	}
	node.run()
	if got := established(t, gw, node); got != id {
		t.Errorf("session %v, want %v to go on", got, id)
	}
}

// TestOfferedAddressesAreKept: what is offered and not answered when a gateway is
// killed is nobody else's after it has started again.
func TestOfferedAddressesAreKept(t *testing.T) {
	gw, node := pair(t)
	established(t, gw, node)
	g := gw.m.gateway
	g.mu.Lock()
	defer g.mu.Unlock()
	offer := &control.Offer{RequestID: session.NewID(), Terms: control.Terms{
		Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.9"), netip.MustParseAddr("fd77::9")}}}
	for _, mb := range g.members.byID {
		mb.offer = offer
		g.restoreOffer(mb)
	}
	for _, a := range offer.Addresses {
		if by, ok := g.networks[0].pool.Of(a); !ok || by != offer.RequestID {
			t.Errorf("%v is leased to %v, %v, want it kept for the offer", a, by, ok)
		}
	}
}
