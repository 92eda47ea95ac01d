package tunnel

import (
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/config"
	"tunneld/internal/control"
	"tunneld/internal/control/wire"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

// parked reports whether the gateway's only connection is parked.
func (d *daemon) parked() bool {
	p := d.connection()
	p.waking.Lock()
	defer p.waking.Unlock()
	return p.conn == nil
}

// connection is the gateway's only one.
func (d *daemon) connection() *peerConn {
	d.t.Helper()
	g := d.m.gateway
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.conns) != 1 {
		d.t.Fatalf("the gateway has %d connections, want one", len(g.conns))
	}
	for _, p := range g.conns {
		return p
	}
	return nil
}

// parkedPair is a gateway with a session that is parked, and the node of it, which
// does not run.
func parkedPair(t *testing.T, set func(*config.Timers)) (gw, node *daemon, id string) {
	t.Helper()
	gw, node = newGatewayDaemon(t), newNodeDaemon(t, "alice")
	set(&gw.cfg.Networks[0].Timers)
	gw.run()
	t.Cleanup(func() { gw.end() })
	node.run()
	node.join(gw)
	id = established(t, gw, node)
	node.end()
	wait(t, "the connection to be parked", gw.parked)
	return gw, node, id
}

func anyTimers(*config.Timers) {}

// TestParkedSessionIsShown: whoever looks at a parked session does not wake it,
// and sees what it saw before; its data goes on.
func TestParkedSessionIsShown(t *testing.T) {
	gw, _, id := parkedPair(t, anyTimers)
	all := gw.sessions()
	if len(all) != 1 || all[0].Session != id || all[0].State != "suspended" || all[0].ExpiresAt == nil {
		t.Errorf("sessions = %+v", all)
	}
	d, err := gw.m.Session(t.Context(), id)
	if err != nil || *d.Checkpoint < 6 || len(d.History) == 0 {
		t.Errorf("session show = %+v, %v", d, err)
	}
	if s := gw.engineSession(id); s.Gate != engine.Open || s.Deadline.IsZero() {
		t.Errorf("the data plane has %+v", s)
	}
	if !gw.parked() {
		t.Error("a look at the session has woken its connection")
	}
}

// TestParkedSessionResumes, however often, also where the gateway was restarted
// meanwhile and never had the connection at work.
func TestParkedSessionResumes(t *testing.T) {
	gw, node, id := parkedPair(t, anyTimers)
	for i, restarted := range []bool{false, true, false} {
		if restarted {
			gw.end()
			gw.run()
			if !gw.parked() {
				t.Fatal("a restored connection is at work before anybody wants it")
			}
		}
		node.run()
		if got := established(t, gw, node); got != id {
			t.Fatalf("session %v after %d resumes, want %v", got, i, id)
		}
		if got := gw.sessions()[0].Resumes; got != uint64(i+1) {
			t.Errorf("resumes = %d, want %d", got, i+1)
		}
		node.end()
		wait(t, "the connection to be parked again", gw.parked)
	}
}

// TestParkedSessionEnds in each way there is, with everything that an end is.
func TestParkedSessionEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		set  func(*config.Timers)
		end  func(gw *daemon, id string) error // nil: time does it
		next func(*daemon)                     // what the next process has in its file; nil: there is none
	}{
		"killed":           {end: func(gw *daemon, id string) error { return gw.m.KillSession(gw.t.Context(), id, "test") }},
		"revoked":          {end: func(gw *daemon, _ string) error { return gw.m.RevokeNode(gw.t.Context(), "alice") }},
		"grace":            {set: func(c *config.Timers) { c.Grace = 2 * time.Second }},
		"absolute":         {set: func(c *config.Timers) { c.Absolute = 3 * time.Second }},
		"reauth":           {set: func(c *config.Timers) { c.Reauth = 3 * time.Second }},
		"idle":             {set: func(c *config.Timers) { c.Idle = 2 * time.Second }},
		"configuration":    {next: func(gw *daemon) { gw.cfg.Networks[0].Name = "another" }},
		"grace, restarted": {set: func(c *config.Timers) { c.Grace = 2 * time.Second }, next: func(*daemon) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tt.set == nil {
				tt.set = anyTimers
			}
			gw, _, id := parkedPair(t, tt.set)
			sid, _ := session.ParseID(id)
			if tt.next != nil {
				gw.end()
				tt.next(gw)
				gw.run()
			}
			if tt.end != nil {
				if err := tt.end(gw, id); err != nil {
					t.Fatal(err)
				}
			}
			wait(t, "the end of the session", func() bool { return len(gw.sessions()) == 0 && len(gw.ends()) > 0 })
			if ends := gw.ends(); len(ends) != 1 || ends[0].Session != sid || ends[0].Cause == "unknown" && tt.next == nil {
				t.Errorf("the record has the ends %+v", ends)
			}
			if s := gw.engineSession(id); !s.ID.IsZero() {
				t.Errorf("the data plane still has %+v", s)
			}
			for _, n := range gw.m.gateway.networks {
				if leases := n.pool.Leases(); len(leases) != 0 {
					t.Errorf("leases %+v", leases)
				}
			}
		})
	}
}

// TestParkedNodeLearnsOfRoutes: what changes while a node is away it is told when
// it is back, once, and nobody is woken for it.
func TestParkedNodeLearnsOfRoutes(t *testing.T) {
	gw, node, _ := parkedPair(t, anyTimers)
	branch, inside := newNodeDaemon(t, "branch"), netip.MustParsePrefix("10.20.0.0/24")
	alice := gw.connection()
	branch.run()
	t.Cleanup(branch.end)
	branch.join(gw, inside)
	wait(t, "the branch", func() bool { return branch.tunnel().State == "established" })
	alice.waking.Lock()
	if alice.conn != nil {
		t.Error("the connection was woken by a route")
	}
	alice.waking.Unlock()
	node.run()
	t.Cleanup(node.end)
	wait(t, "the route", func() bool { return slices.Contains(node.host.Routes("tnl0"), inside) })
}

// TestDrainWakesNobody: a node that is away is told when it is back.
func TestDrainWakesNobody(t *testing.T) {
	gw, node, _ := parkedPair(t, anyTimers)
	if err := gw.m.Drain(t.Context(), api.DrainRequest{OverMillis: 3_600_000}); err != nil {
		t.Fatal(err)
	}
	if !gw.parked() {
		t.Error("the connection was woken to tell it of a drain")
	}
	node.run()
	t.Cleanup(node.end)
	wait(t, "the node to know", func() bool { return node.tunnel().Leaving != nil })
}

// TestKilledGatewayNotesSuspension: of a session that was in use when the gateway
// was killed it is noted, before anybody comes in, since when it is suspended.
func TestKilledGatewayNotesSuspension(t *testing.T) {
	gw, node, _ := parkedPair(t, anyTimers)
	p := gw.connection()
	gw.end()
	saved, err := gw.m.journal.connection(p.id)
	if err != nil {
		t.Fatal(err)
	}
	saved.record.SuspendedAt = time.Time{} // as a kill leaves it
	if err := gw.m.journal.saveConnection("", saved.seen, saved.record, nil); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	gw.run()
	again, err := gw.m.journal.connection(p.id)
	if err != nil || again.record.SuspendedAt.Before(before.Round(0)) {
		t.Errorf("suspended at %v, %v; want a time after %v", again.record.SuspendedAt, err, before)
	}
	if again.seen != saved.seen || len(again.record.Sessions) != 1 {
		t.Errorf("the record is %+v now", again)
	}
	if !gw.recorded("session-suspended", gw.sessions()[0].Session, killedCause) {
		t.Error("no event tells of it")
	}
	node.run()
	t.Cleanup(node.end)
	established(t, gw, node)
}

// TestUnreadableRecord: a parked connection whose record cannot be read is refused
// for now, and goes on when it can.
func TestUnreadableRecord(t *testing.T) {
	gw, node, id := parkedPair(t, anyTimers)
	p := gw.connection()
	saved, err := gw.m.journal.connection(p.id)
	if err != nil {
		t.Fatal(err)
	}
	if err := gw.m.journal.forgetConnection(p.id); err != nil {
		t.Fatal(err)
	}
	if err := p.Do(t.Context(), control.TellDrain{}); err == nil {
		t.Error("an event was taken by a connection that has no record")
	}
	node.run()
	t.Cleanup(node.end)
	wait(t, "a refusal", func() bool { return node.tunnel().LastError != nil })
	if err := gw.m.journal.saveConnection("", saved.seen, saved.record, nil); err != nil {
		t.Fatal(err)
	}
	if got := established(t, gw, node); got != id {
		t.Errorf("session %v, want %v to go on", got, id)
	}
}

// TestWakingLosesNothing: many want something of a connection that is parked
// again and again under them. What was acknowledged is in the journal, as it
// would not be if two machines had gone on from one record.
func TestWakingLosesNothing(t *testing.T) {
	gw, node, id := parkedPair(t, anyTimers)
	p := gw.connection()
	v, err := p.View()
	if err != nil {
		t.Fatal(err)
	}
	local := v.Sessions[0].LocalID
	want := func(what string, ok func(*control.Record) bool) {
		if c, err := gw.m.journal.connection(p.id); err != nil || !ok(c.record) {
			t.Errorf("%s was acknowledged and is not in the journal: %+v, %v", what, c.record, err)
		}
	}
	for i := range 60 {
		life := wire.Lifetime{Absolute: time.Duration(i+1) * time.Hour}
		stamp := wire.Stamp{1, byte(i)}
		var both sync.WaitGroup
		both.Go(func() {
			if err := p.Do(t.Context(), control.ChangeLifetime{LocalID: local, Lifetime: life}); err != nil {
				t.Errorf("Do = %v", err)
			}
			want("a lifetime", func(r *control.Record) bool { return r.Sessions[0].Lifetime == life })
		})
		both.Go(func() {
			for at := time.Now().Add(time.Duration(i) * 40 * time.Microsecond); time.Now().Before(at); { // when the other parks, or before
				runtime.Gosched()
			}
			if err := p.Do(t.Context(), control.TellStamp{LocalID: local, Stamp: stamp}); err != nil {
				t.Errorf("Do = %v", err)
			}
			want("a stamp", func(r *control.Record) bool {
				return slices.ContainsFunc(r.Unacked, func(p *wire.Packet) bool { return p.Message.(*wire.SLI).Stamp == stamp })
			})
		})
		both.Wait()
		if i%2 == 0 { // both wake it
			wait(t, "the connection to be parked", gw.parked)
		}
	}
	node.run()
	t.Cleanup(node.end)
	if got := established(t, gw, node); got != id {
		t.Errorf("session %v, want %v to go on", got, id)
	}
}
