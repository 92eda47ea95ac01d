package tunnel

import (
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tunneld/internal/control"
	"tunneld/internal/secret"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine/enginetest"
)

// plane is a session as the data planes of both ends have it.
func plane(t *testing.T, id string, gw, node *daemon) (g, n enginetest.Session) {
	t.Helper()
	sid, err := session.ParseID(id)
	if err != nil {
		t.Fatal(err)
	}
	g, _ = gw.engine.Device("tnl0").Session(sid)
	n, _ = node.engine.Device("tnl0").Session(sid)
	return g, n
}

// rekeying is a pair whose node changes keys every few milliseconds.
func rekeying(t *testing.T, every time.Duration) (gw, node *daemon) {
	t.Helper()
	gw, node = newGatewayDaemon(t), newNodeDaemon(t, "alice")
	node.cfg.Data.Rekey = every
	for _, d := range []*daemon{gw, node} {
		d.run()
		t.Cleanup(d.end)
	}
	node.join(gw)
	return gw, node
}

// happened counts the events of a kind of which the cause has that text.
func (d *daemon) happened(kind, cause string) (n int) {
	d.t.Helper()
	past, _, err := d.m.Events(d.t.Context(), false)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, e := range past {
		if e.Event == kind && (cause == "" || e.Cause != nil && strings.Contains(*e.Cause, cause)) {
			n++
		}
	}
	return n
}

func TestDataKeysChange(t *testing.T) {
	gw, node := rekeying(t, 20*time.Millisecond)
	id := established(t, gw, node)
	var keys []secret.Value
	for epoch := uint32(1); epoch <= 3; epoch++ {
		wait(t, "the next key epoch at both ends", func() bool {
			ss := gw.sessions()
			return *node.tunnel().KeyEpoch >= epoch && len(ss) == 1 && *ss[0].KeyEpoch >= epoch
		})
		_, n := plane(t, id, gw, node)
		if slices.ContainsFunc(keys, n.PresharedKey.Equal) {
			t.Error("a key came a second time")
		}
		keys = append(keys, n.PresharedKey)
	}
	if got := *node.tunnel().Session; got != id {
		t.Errorf("session %v after three changes, want %v", got, id)
	}
	for _, d := range []*daemon{gw, node} {
		wait(t, "the event", func() bool { return d.happened("session-rekeyed", "key epoch 3") == 1 })
		if n := d.happened("rekey-failed", ""); n != 0 {
			t.Errorf("%s: %d changes failed", d.cfg.Node.Name, n)
		}
	}
	// The last key in use outlives both processes.
	node.end()
	gw.end()
	gw.run()
	node.run()
	if got := established(t, gw, node); got != id {
		t.Errorf("session %v after the restart of both, want %v", got, id)
	}
	wait(t, "the same key at both ends", func() bool {
		g, n := plane(t, id, gw, node)
		return g.PresharedKey.Equal(n.PresharedKey) && !n.PresharedKey.Equal(keys[0])
	})
}

// TestUnconfirmedKeyIsRolledBack: no handshake succeeds with the new key.
func TestUnconfirmedKeyIsRolledBack(t *testing.T) {
	gw, node := newGatewayDaemon(t), newNodeDaemon(t, "alice")
	node.cfg.Data.Rekey = 50 * time.Millisecond
	node.keys.Confirm = 150 * time.Millisecond
	for _, d := range []*daemon{gw, node} {
		d.run()
		t.Cleanup(d.end)
	}
	node.join(gw)
	id := established(t, gw, node)
	node.engine.Fail("Handshake", errors.New("no answer"))
	wait(t, "the roll-back at both ends", func() bool {
		return node.happened("rekey-failed", "carried no traffic") > 0 && gw.happened("rekey-failed", "carried no traffic") > 0
	})
	node.engine.Fail("Handshake", nil)
	wait(t, "a change that succeeds", func() bool { return node.happened("session-rekeyed", "") > 0 })
	if got := established(t, gw, node); got != id {
		t.Errorf("session %v, want %v", got, id)
	}
}

// TestGatewayRefusesAKey: its data plane does not take it.
func TestGatewayRefusesAKey(t *testing.T) {
	gw, node := rekeying(t, 20*time.Millisecond)
	gw.engine.Fail("SetPresharedKey", errors.New("no room"))
	established(t, gw, node)
	wait(t, "the refusal", func() bool { return node.happened("rekey-failed", "the gateway's data plane refused the key") > 0 })
	if epoch := *node.tunnel().KeyEpoch; epoch != 0 {
		t.Errorf("key epoch = %d after a refusal, want 0", epoch)
	}
	gw.engine.Fail("SetPresharedKey", nil)
	wait(t, "a change that succeeds", func() bool { return *node.tunnel().KeyEpoch > 0 })
}

// TestGatewayTurnsKeys: control died in the middle of a change, and the node may
// use either key.
func TestGatewayTurnsKeys(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	g := gw.m.gateway
	before, _ := plane(t, id, gw, node)
	next := secret.New([]byte("next key of thirty-two octets...."))
	g.mu.Lock()
	mb := g.members.byID[before.ID]
	g.changing = map[*member]*gatewayKeys{mb: {old: before.PresharedKey, next: next, turnedAt: time.Now()}}
	g.mu.Unlock()
	now := time.Now()
	for i, want := range []secret.Value{before.PresharedKey, next, next, before.PresharedKey} {
		g.turnKeys(now)
		if got, _ := plane(t, id, gw, node); !got.PresharedKey.Equal(want) {
			t.Errorf("look %d: the gateway answers with the wrong key", i)
		}
		now = now.Add([]time.Duration{keyTurn, keyTurn / 2, keyTurn, 0}[i])
	}
	stats := before.Stats
	stats.LastHandshake = now
	if err := gw.engine.Device("tnl0").SetStats(before.ID, stats); err != nil {
		t.Fatal(err)
	}
	g.turnKeys(now.Add(keyTurn))
	if got, _ := plane(t, id, gw, node); !got.PresharedKey.Equal(before.PresharedKey) {
		t.Error("the key was turned though a handshake has just succeeded with it")
	}
}

// TestControlIsDialledAnew: by age and by volume, beside the living transport.
func TestControlIsDialledAnew(t *testing.T) {
	for name, set := range map[string]func(*daemon){
		"age":    func(d *daemon) { d.cfg.Data.Redial = 100 * time.Millisecond },
		"volume": func(d *daemon) { d.keys.Volume = 100 },
	} {
		t.Run(name, func(t *testing.T) {
			gw, node := newGatewayDaemon(t), newNodeDaemon(t, "alice")
			set(node)
			for _, d := range []*daemon{gw, node} {
				d.run()
				t.Cleanup(d.end)
			}
			node.join(gw)
			id := established(t, gw, node)
			wait(t, "two new transports", func() bool {
				node.m.keys.look()
				return node.tunnel().Resumes >= 2 && gw.sessions()[0].Resumes >= 2
			})
			if got := established(t, gw, node); got != id {
				t.Errorf("session %v, want %v", got, id)
			}
			for _, d := range []*daemon{gw, node} {
				if n := d.happened("session-suspended", ""); n != 0 {
					t.Errorf("%s: suspended %d times", d.cfg.Node.Name, n)
				}
			}
		})
	}
}

// TestFailedRedialLeavesTheOld: the gateway's listener is gone, its connections
// are not.
func TestFailedRedialLeavesTheOld(t *testing.T) {
	gw, node := newGatewayDaemon(t), newNodeDaemon(t, "alice")
	l := newGate(t, gw)
	node.cfg.Data.Redial = 100 * time.Millisecond
	for _, d := range []*daemon{gw, node} {
		d.run()
		t.Cleanup(d.end)
	}
	node.join(gw)
	id := established(t, gw, node)
	l.shut.Store(true)
	wait(t, "a dial that fails", func() bool { return node.tunnel().LastError != nil })
	if tn := node.tunnel(); tn.State != "established" || *tn.Session != id {
		t.Errorf("tunnel = %+v while the gateway cannot be dialled, want established", tn)
	}
	if n := node.happened("session-suspended", ""); n != 0 {
		t.Errorf("suspended %d times", n)
	}
}

// gate is a gateway's listener that can be shut.
type gate struct {
	net.Listener
	shut atomic.Bool
}

func newGate(t *testing.T, gw *daemon) *gate {
	t.Helper()
	l, err := net.Listen("tcp", gw.cfg.Gateway.Listen)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Listener: l}
	gw.listen = func(string) (net.Listener, error) { return g, nil }
	return g
}

// Accept closes what comes while the gate is shut.
func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil || !g.shut.Load() {
			return c, err
		}
		c.Close()
	}
}

// TestArmedKeyOutlivesARestart: the change goes on where it was, at either end.
func TestArmedKeyOutlivesARestart(t *testing.T) {
	for _, who := range []string{"node", "gateway", "both"} {
		t.Run(who, func(t *testing.T) {
			gw, node := pair(t)
			id := established(t, gw, node)
			node.engine.Fail("Stats", errors.New("no handshake is seen")) // so that the key stays armed
			node.m.mu.Lock()
			conn, local := node.m.tunnels[0].link.conn, node.m.tunnels[0].session.LocalID
			node.m.mu.Unlock()
			if err := conn.Do(t.Context(), control.StartRekey{LocalID: local}); err != nil {
				t.Fatal(err)
			}
			wait(t, "the key to be armed at both ends", func() bool {
				g, n := plane(t, id, gw, node)
				node.m.mu.Lock()
				defer node.m.mu.Unlock()
				return !node.m.tunnels[0].session.NextPresharedKey.IsZero() && g.PresharedKey.Equal(n.PresharedKey)
			})
			if who != "gateway" {
				node.end()
			}
			if who != "node" {
				gw.end()
				gw.run()
			}
			if who != "gateway" {
				node.run()
			}
			node.engine.Fail("Stats", nil)
			wait(t, "the first key epoch at both ends", func() bool {
				ss := gw.sessions()
				return len(ss) == 1 && *ss[0].KeyEpoch == 1 && node.tunnel().KeyEpoch != nil && *node.tunnel().KeyEpoch == 1
			})
			gw.m.gateway.mu.Lock()
			open := len(gw.m.gateway.changing)
			gw.m.gateway.mu.Unlock()
			if g, n := plane(t, id, gw, node); !g.PresharedKey.Equal(n.PresharedKey) || g.PresharedKey.IsZero() || open != 0 {
				t.Errorf("keys of the data planes alike: %v; %d changes open at the gateway, want none", g.PresharedKey.Equal(n.PresharedKey), open)
			}
		})
	}
}
