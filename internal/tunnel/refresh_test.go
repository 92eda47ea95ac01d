package tunnel

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/config"
	"tunneld/internal/control"
)

// wish has the daemon's tunnel begin anew with a lifetime to ask for.
func (d *daemon) wish(lifetime time.Duration, refresher string) {
	d.t.Helper()
	if err := d.m.Down(d.t.Context(), "office"); err != nil {
		d.t.Fatal(err)
	}
	d.end()
	tunnels, err := config.ReadTunnels(d.cfg.Node.StateDir)
	if err != nil || len(tunnels) != 1 {
		d.t.Fatalf("ReadTunnels = %v, %v; want one", tunnels, err)
	}
	tunnels[0].Lifetime, tunnels[0].Refresher = lifetime, refresher
	if _, err := config.WriteTunnel(d.cfg.Node.StateDir, tunnels[0]); err != nil {
		d.t.Fatal(err)
	}
	d.run()
	if _, err := d.m.Up(d.t.Context(), "office", patience); err != nil {
		d.t.Fatal(err)
	}
}

// agreement is the lifetime of a session as one end tells it.
type agreement struct {
	lifetime  time.Duration
	refresher string
}

func agreementOf(ms *int64, refresher *string) (a agreement) {
	if ms != nil && refresher != nil {
		a = agreement{time.Duration(*ms) * time.Millisecond, *refresher}
	}
	return a
}

// agreed waits until both ends tell of that agreement, and that the next refresh
// is due by half of its time.
func agreed(t *testing.T, gw, node *daemon, want agreement) {
	t.Helper()
	wait(t, fmt.Sprintf("%+v at both ends", want), func() bool {
		ss, tn := gw.sessions(), node.tunnel()
		return len(ss) == 1 && agreementOf(ss[0].LifetimeMillis, ss[0].Refresher) == want && agreementOf(tn.LifetimeMillis, tn.Refresher) == want
	})
	for at, end := range map[*time.Time]string{gw.sessions()[0].RefreshAt: "gateway", node.tunnel().RefreshAt: "node"} {
		if at == nil || time.Until(*at) > want.lifetime/2 {
			t.Errorf("%s: the next refresh is due at %v, want within half of %v", end, at, want.lifetime)
		}
	}
}

// TestLifetimeOfTheNetwork is agreed on with a node that has no wish, outlives a
// restart of either end and follows the configuration at the next refresh.
func TestLifetimeOfTheNetwork(t *testing.T) {
	gw, node := timedPair(t, func(c *config.Timers) { c.Lifetime, c.Refresher = time.Hour, "gateway" })
	id := established(t, gw, node)
	agreed(t, gw, node, agreement{time.Hour, "gateway"})
	for _, d := range []*daemon{gw, node} {
		if left := d.left(id); !near(left, time.Hour) {
			t.Errorf("%s: the data plane stops the session in %v, want an hour", d.cfg.Node.Name, left)
		}
		d.end()
		d.run()
		if got := established(t, gw, node); got != id {
			t.Fatalf("session %v after a restart, want %v", got, id)
		}
		agreed(t, gw, node, agreement{time.Hour, "gateway"})
	}
	gw.end()
	gw.cfg.Networks[0].Timers.Lifetime = 20 * time.Minute
	gw.run()
	established(t, gw, node)
	gw.refreshNow()
	agreed(t, gw, node, agreement{20 * time.Minute, "gateway"})
	for _, d := range []*daemon{gw, node} {
		wait(t, "an event of the change", func() bool { return d.happened("session-changed", "lifetime 20m0s, refreshed by the gateway") == 1 })
	}
}

// refreshNow makes the next refresh of every session of a gateway due.
func (d *daemon) refreshNow() {
	g := d.m.gateway
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, mb := range g.members.byID {
		mb.life.Refresh.Next, mb.life.CheckAt = bootNow(), 0
	}
}

// TestLifetimeThatTheNodeAsksFor is agreed on, between the network's bounds.
func TestLifetimeThatTheNodeAsksFor(t *testing.T) {
	for _, tt := range []struct {
		name      string
		network   func(*config.Timers)
		wish      time.Duration
		refresher string
		want      agreement
	}{
		{"its own", func(*config.Timers) {}, time.Hour, "gateway", agreement{time.Hour, "gateway"}},
		{"no more than the network's", func(c *config.Timers) { c.Lifetime = time.Minute }, time.Hour, "", agreement{time.Minute, "node"}},
		{"no less than the floor of a network that names none", func(*config.Timers) {}, time.Second, "gateway", agreement{90 * time.Second, "gateway"}},
		{"no less than the network's floor", func(c *config.Timers) { c.MinLifetime = 10 * time.Minute }, time.Minute, "node", agreement{10 * time.Minute, "node"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			gw, node := timedPair(t, tt.network)
			established(t, gw, node)
			node.wish(tt.wish, tt.refresher)
			agreed(t, gw, node, tt.want)
		})
	}
}

// TestBothRefreshers keep a session for three of its lifetimes.
func TestBothRefreshers(t *testing.T) {
	for _, refresher := range []string{"node", "gateway"} {
		inTime(t, 2*time.Second, func(lifetime time.Duration) error {
			gw, node := timedPair(t, func(c *config.Timers) { c.Lifetime, c.Refresher = lifetime, refresher })
			id := node.begun()
			began := time.Now()
			var last api.Tunnel
			wait(t, "three lifetimes", func() bool {
				last = node.tunnel()
				return last.Session == nil || *last.Session != id || time.Since(began) > 3*lifetime
			})
			if last.Session == nil || *last.Session != id || last.Resumes != 0 || gw.recorded("session-closed", id, "") {
				return fmt.Errorf("refreshed by the %s: status = %+v, want session %s still, without a resume", refresher, last, id)
			}
			return nil
		})
	}
}

// TestSilentRefresher has the session end at both ends when its refresher says
// nothing though the transport lives.
func TestSilentRefresher(t *testing.T) {
	for _, refresher := range []string{"node", "gateway"} {
		gw, node := timedPair(t, func(c *config.Timers) { c.Lifetime, c.Refresher = 3*time.Second, refresher })
		id := node.begun()
		gw.silence()
		node.silence()
		wait(t, "another session", func() bool {
			tn := node.tunnel()
			return tn.State == "established" && *tn.Session != id
		})
		for _, d := range []*daemon{gw, node} {
			if !d.recorded("session-closed", id, "was not refreshed in time") {
				t.Errorf("refreshed by the %s: %s has not the cause in its record", refresher, d.cfg.Node.Name)
			}
		}
		if len(gw.sessions()) != 1 {
			t.Errorf("the gateway has %d sessions, want the new one", len(gw.sessions()))
		}
	}
}

// silence has the daemon refresh none of the sessions that it has now.
func (d *daemon) silence() {
	d.m.mu.Lock()
	for _, t := range d.m.tunnels {
		t.life.Refresh.Mine = false
	}
	d.m.mu.Unlock()
	if g := d.m.gateway; g != nil {
		g.mu.Lock()
		for _, mb := range g.members.byID {
			mb.life.Refresh.Mine = false
		}
		g.mu.Unlock()
	}
}

// TestRoutesWaitForAnOpenOffer: what cannot be offered because of another offer
// is, when that is answered.
func TestRoutesWaitForAnOpenOffer(t *testing.T) {
	gw, node := pair(t)
	established(t, gw, node)
	g := gw.m.gateway
	g.mu.Lock()
	var mb *member
	for _, mb = range g.members.byID {
	}
	other := control.Offer{RequestID: mb.id}
	mb.offer = &other // as if it were under way
	g.networks[0].cfg.Routes = append(g.networks[0].cfg.Routes, netip.MustParsePrefix("10.99.0.0/24"))
	g.mu.Unlock()
	g.announce(t.Context(), g.networks[0])
	if got := mb.conn.conn.View().Sessions[0]; got.Offer != nil || len(got.Routes) != len(mb.terms.Routes) {
		t.Errorf("routes are offered beside another offer: %+v", got)
	}
	mb.conn.changeRefused(control.ChangeRefused{Session: mb.conn.conn.View().Sessions[0], Offer: other, Remote: true})
	wait(t, "the routes at both ends", func() bool {
		tn := node.tunnel()
		return slices.Contains(tn.Routes, netip.MustParsePrefix("10.99.0.0/24"))
	})
}
