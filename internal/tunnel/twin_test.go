package tunnel

import (
	"errors"
	"testing"

	"tunneld/internal/api"
	"tunneld/internal/config"
)

// TestTwoTunnelsToOneNetwork: the second says why it does not come up, and does
// nothing to the first; it comes up when that is down.
func TestTwoTunnelsToOneNetwork(t *testing.T) {
	for name, more := range map[string][]string{"one connection": nil, "two connections": {"127.0.0.1:1"}} {
		t.Run(name, func(t *testing.T) {
			gw, node := pair(t)
			id := established(t, gw, node)
			node.end()
			node.cfg.Tunnels = []config.Tunnel{{
				Name: "second", Network: "office", Auto: true, Gateways: append([]string{gw.cfg.Gateway.Public}, more...),
			}}
			node.run()
			tunnels := func() (second, office api.Tunnel) {
				st, err := node.m.Status(t.Context())
				if err != nil || len(st.Tunnels) != 2 {
					t.Fatalf("Status = %+v, %v; want two tunnels", st, err)
				}
				return st.Tunnels[0], st.Tunnels[1]
			}
			wait(t, "one tunnel up and the other given up", func() bool {
				second, office := tunnels()
				return office.State == "established" && second.State == "idle" && second.LastError != nil
			})
			_, err := node.m.Up(t.Context(), "second", patience)
			if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.Failed {
				t.Errorf("Up = %v, want Failed", err)
			}
			second, office := tunnels()
			if got, want := *second.LastError, (&twinError{"office", "office"}).Error(); got != want {
				t.Errorf("last error = %q, want %q", got, want)
			}
			if office.Session == nil || *office.Session != id || len(gw.sessions()) != 1 {
				t.Errorf("the first tunnel has %+v, the gateway %+v; want session %s alone", office, gw.sessions(), id)
			}
			if err := node.m.Down(t.Context(), "office"); err != nil {
				t.Fatal(err)
			}
			if _, err := node.m.Up(t.Context(), "second", patience); err != nil {
				t.Errorf("Up with the first tunnel down: %v", err)
			}
		})
	}
}
