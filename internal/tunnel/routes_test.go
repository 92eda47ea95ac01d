package tunnel

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/auth"
	"tunneld/internal/store/storetest"
)

// TestTwoTunnelsWantOneRoute: a prefix belongs to the tunnel that had it first.
// The other one comes up without it, and takes it when the first is gone.
func TestTwoTunnelsWantOneRoute(t *testing.T) {
	gw, node := pair(t)
	established(t, gw, node)
	shared, pool := gw.cfg.Networks[0].Routes[0], netip.MustParsePrefix("10.88.0.0/24")
	lab := newGatewayDaemon(t)
	lab.cfg.Networks[0].Name, lab.cfg.Networks[0].Pools = "lab", []netip.Prefix{pool}
	lab.run()
	t.Cleanup(lab.end)
	node.join(lab)
	second := func() api.Tunnel {
		st, err := node.m.Status(t.Context())
		if err != nil || len(st.Tunnels) != 2 {
			t.Fatalf("Status = %+v, %v; want two tunnels", st, err)
		}
		return st.Tunnels[1]
	}
	if _, err := node.m.Up(t.Context(), "lab", patience); err != nil {
		t.Fatalf("Up: %v", err)
	}
	if got := second(); !slices.Equal(got.Routes, []netip.Prefix{pool}) || !slices.Equal(got.RefusedRoutes, []netip.Prefix{shared}) {
		t.Errorf("routes %v, refused %v; want %v and %v", got.Routes, got.RefusedRoutes, pool, shared)
	}
	if err := node.m.Down(t.Context(), "office"); err != nil {
		t.Fatal(err)
	}
	if got := second(); !slices.Contains(got.Routes, shared) || len(got.RefusedRoutes) > 0 {
		t.Errorf("with the first tunnel down: routes %v, refused %v", got.Routes, got.RefusedRoutes)
	}
}

// TestOwnPoolIsNoRoute: what a gateway gives to its own nodes never leads to
// another gateway.
func TestOwnPoolIsNoRoute(t *testing.T) {
	far, both := newGatewayDaemon(t), newGatewayDaemon(t)
	both.cfg.Node.Name, both.store = "both", storetest.New(t)
	if _, err := auth.InitGateway(both.store, "both", time.Now()); err != nil {
		t.Fatal(err)
	}
	inside := netip.MustParsePrefix("10.88.5.0/24")
	far.cfg.Networks[0].Routes = append(far.cfg.Networks[0].Routes, inside)
	both.cfg.Networks[0].Name, both.cfg.Networks[0].Pools = "lab", []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16")}
	for _, d := range []*daemon{far, both} {
		d.run()
		t.Cleanup(d.end)
	}
	both.join(far)
	if _, err := both.m.Up(t.Context(), "office", patience); err != nil {
		t.Fatalf("Up: %v", err)
	}
	if got := both.tunnel(); !slices.Contains(got.RefusedRoutes, inside) || slices.Contains(got.Routes, inside) {
		t.Errorf("routes %v, refused %v; want %v refused", got.Routes, got.RefusedRoutes, inside)
	}
}
