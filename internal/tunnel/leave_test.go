package tunnel

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/config"
	"tunneld/internal/tunnel/redirect"
)

// twoGateways is a node whose one tunnel names two gateways, of different
// deployments, in this order. All three are running.
func twoGateways(t *testing.T) (first, second, node *daemon) {
	t.Helper()
	first, second, node = newGatewayDaemon(t), newGatewayDaemon(t), newNodeDaemon(t, "alice")
	second.cfg.Networks[0].Pools = []netip.Prefix{netip.MustParsePrefix("10.78.0.0/24")}
	node.run()
	t.Cleanup(func() { node.end() })
	var both []string
	for name, gw := range map[string]*daemon{"first": first, "second": second} {
		gw.run()
		t.Cleanup(func() { gw.end() })
		invite, err := gw.m.Invite(t.Context(), api.InviteRequest{Node: "alice", TTLMillis: 60_000})
		if err != nil {
			t.Fatalf("Invite: %v", err)
		}
		if _, err := node.m.Join(t.Context(), api.JoinRequest{Code: invite.Code, As: name}); err != nil {
			t.Fatalf("Join: %v", err)
		}
		if err := node.m.Down(t.Context(), name); err != nil {
			t.Fatalf("Down: %v", err)
		}
		wait(t, "its session to end", func() bool { return len(gw.sessions()) == 0 })
	}
	for _, gw := range []*daemon{first, second} {
		both = append(both, gw.cfg.Gateway.Public)
	}
	node.end()
	for _, name := range []string{"first", "second"} { // it stays joined
		if err := config.RemoveTunnel(node.cfg.Node.StateDir, name); err != nil {
			t.Fatal(err)
		}
	}
	node.cfg.Tunnels = []config.Tunnel{{Name: "office", Network: "office", Auto: true, Gateways: both}}
	node.run()
	return first, second, node
}

func (d *daemon) drain(t *testing.T, q api.DrainRequest) {
	t.Helper()
	if err := d.m.Drain(t.Context(), q); err != nil {
		t.Fatalf("Drain: %v", err)
	}
}

// TestRetargetLoop: two gateways that go, each of which names the other. The node
// follows a while, says then what is wrong, and is there as soon as one stays.
func TestRetargetLoop(t *testing.T) {
	first, second, node := twoGateways(t)
	established(t, first, node)
	if err := node.m.Down(t.Context(), "office"); err != nil {
		t.Fatal(err)
	}
	wait(t, "the session to end", func() bool { return len(first.sessions()) == 0 })
	first.drain(t, api.DrainRequest{To: []string{second.cfg.Gateway.Public}})
	second.drain(t, api.DrainRequest{To: []string{first.cfg.Gateway.Public}})
	up := make(chan error, 1)
	go func() {
		_, err := node.m.Up(t.Context(), "office", patience)
		up <- err
	}()
	wait(t, "the loop to be noticed", func() bool {
		node.m.mu.Lock()
		defer node.m.mu.Unlock()
		return errors.Is(node.m.tunnels[0].lastErr, redirect.ErrLoop)
	})
	if n := len(first.sessions()) + len(second.sessions()); n != 0 {
		t.Errorf("%d sessions at gateways that take nothing new", n)
	}
	second.drain(t, api.DrainRequest{Cancel: true})
	if err := <-up; err != nil {
		t.Errorf("Up: %v", err)
	}
	established(t, second, node)
	node.m.mu.Lock()
	defer node.m.mu.Unlock()
	if err := node.m.tunnels[0].link.way.Err(); err != nil {
		t.Errorf("having arrived, the node still says: %v", err)
	}
}

// TestMoveAndStay: a node that is to leave later stays if the gateway does, and
// one that is to leave now is with the other gateway and not with this one.
func TestMoveAndStay(t *testing.T) {
	first, second, node := twoGateways(t)
	id := established(t, first, node)
	first.drain(t, api.DrainRequest{OverMillis: time.Hour.Milliseconds()})
	wait(t, "the node to know where to go", func() bool { l := node.tunnel().Leaving; return l != nil && l.To != nil })
	first.drain(t, api.DrainRequest{Cancel: true})
	wait(t, "the node to know that it stays", func() bool { return node.tunnel().Leaving == nil })
	if got := established(t, first, node); got != id {
		t.Errorf("session %v, want %v to go on", got, id)
	}
	first.drain(t, api.DrainRequest{To: []string{second.cfg.Gateway.Public}})
	established(t, second, node)
	wait(t, "the first gateway to have heard of it", func() bool { return len(first.sessions()) == 0 })
}

// TestTurnedAway: a node without a session is not kept by a gateway that gives it
// none, whatever that one names, if it has another.
func TestTurnedAway(t *testing.T) {
	first, second, node := twoGateways(t)
	id := established(t, first, node)
	first.drain(t, api.DrainRequest{To: []string{"192.0.2.1:443"}})
	wait(t, "the node to know that it has nowhere to go", func() bool { return node.happened("gateway-drains", "waits for it") == 1 })
	if got := established(t, first, node); got != id {
		t.Errorf("session %v while the gateway drains, want %v to go on", got, id)
	}
	if err := first.m.KillSession(t.Context(), id, "test"); err != nil {
		t.Fatal(err)
	}
	established(t, second, node)
}

// TestDrainTellsConnectionsWithoutASession: they, too, are sent where the others go.
func TestDrainTellsConnectionsWithoutASession(t *testing.T) {
	gw, alice, bob := oneAddress(t)
	wait(t, "bob's refusal", func() bool { return bob.happened("session-refused", "no address is free now") > 0 })
	gw.drain(t, api.DrainRequest{})
	for _, d := range []*daemon{alice, bob} {
		wait(t, "all to be told", func() bool { return d.happened("gateway-drains", "waits for it") == 1 })
	}
}

// TestRestartOfOneOfTwoGateways: a gateway that is restarted keeps its session,
// though the node could go elsewhere.
func TestRestartOfOneOfTwoGateways(t *testing.T) {
	first, second, node := twoGateways(t)
	id := established(t, first, node)
	failures := func() int {
		node.m.mu.Lock()
		defer node.m.mu.Unlock()
		return node.m.tunnels[0].link.pace.Failures()
	}
	first.end()
	wait(t, "the node to dial in vain", func() bool { return failures() > 1 })
	first.run()
	if got := established(t, first, node); got != id {
		t.Errorf("session %v after the restart, want %v", got, id)
	}
	if n := len(second.sessions()); n != 0 {
		t.Errorf("the other gateway has %d sessions", n)
	}
}
