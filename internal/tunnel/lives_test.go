package tunnel

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tunneld/internal/api"
	"tunneld/internal/config"
	"tunneld/internal/session"
	"tunneld/internal/tunnel/engine"
)

// timedPair is a pair whose network has these timers.
func timedPair(t *testing.T, set func(*config.Timers)) (gw, node *daemon) {
	t.Helper()
	gw, node = newGatewayDaemon(t), newNodeDaemon(t, "alice")
	set(&gw.cfg.Networks[0].Timers)
	gw.run()
	t.Cleanup(gw.end)
	node.run()
	t.Cleanup(node.end)
	node.join(gw)
	return gw, node
}

// recorded reports whether a daemon has an event of that kind, about a session
// and with a cause that says what.
func (d *daemon) recorded(kind, id, what string) bool {
	d.t.Helper()
	past, _, err := d.m.Events(d.t.Context(), false)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, e := range past {
		if e.Event == kind && e.Session != nil && *e.Session == id && (what == "" || e.Cause != nil && strings.Contains(*e.Cause, what)) {
			return true
		}
	}
	return false
}

func (d *daemon) engineSession(id string) (s engine.Session) {
	d.t.Helper()
	sid, _ := session.ParseID(id)
	dev := d.engine.Device("tnl0")
	if dev == nil {
		return s
	}
	f, _ := dev.Session(sid)
	return f.Session
}

func TestAbsoluteEndsTheSession(t *testing.T) {
	gw, node := timedPair(t, func(c *config.Timers) { c.Absolute = 3 * time.Second })
	id := established(t, gw, node)
	for _, d := range []*daemon{gw, node} {
		if left := time.Until(d.engineSession(id).Deadline); left <= 0 || left > 4*time.Second {
			t.Errorf("%s: the data plane stops the session in %v, want within 4s", d.cfg.Node.Name, left)
		}
	}
	if at := gw.sessions()[0].ExpiresAt; at == nil || time.Until(*at) > 3*time.Second {
		t.Errorf("expires_at at the gateway = %v, want within 3s", at)
	}
	if at := node.tunnel().ExpiresAt; at == nil || time.Until(*at) > 4*time.Second {
		t.Errorf("expires_at at the node = %v, want within 4s", at)
	}
	wait(t, "warnings at both ends", func() bool {
		return gw.recorded("session-expiring", id, "absolute") && node.recorded("session-expiring", id, "absolute")
	})
	wait(t, "another session", func() bool {
		tn := node.tunnel()
		return tn.State == "established" && *tn.Session != id
	})
	if !gw.recorded("session-closed", id, "lived as long as it may") || !node.recorded("session-closed", id, "lived as long as it may") {
		t.Error("the end has not its own cause in both records")
	}
}

// TestAbsoluteCountsOverRestarts restarts the gateway within a session's life.
func TestAbsoluteCountsOverRestarts(t *testing.T) {
	gw, node := timedPair(t, func(c *config.Timers) { c.Absolute = time.Hour })
	id := established(t, gw, node)
	before := *gw.sessions()[0].ExpiresAt
	gw.end()
	gw.run()
	if got := established(t, gw, node); got != id {
		t.Fatalf("session %v after the restart, want %v", got, id)
	}
	if after := *gw.sessions()[0].ExpiresAt; after.Sub(before).Abs() > time.Second {
		t.Errorf("expires at %v after the restart, want %v", after, before)
	}
	gw.end()
	gw.cfg.Networks[0].Timers.Absolute = 30 * time.Minute // policy changed: the node is told
	gw.run()
	wait(t, "the node to be told", func() bool {
		at := node.tunnel().ExpiresAt
		return at != nil && before.Sub(*at).Round(time.Minute) == 30*time.Minute
	})
	node.end()
	node.run()
	if at := node.tunnel().ExpiresAt; at == nil || before.Sub(*at).Round(time.Minute) != 30*time.Minute {
		t.Errorf("the restarted node expects its end at %v, want 30m before %v", at, before)
	}
}

func TestIdleEndsTheSessionUntilUp(t *testing.T) {
	gw, node := timedPair(t, func(c *config.Timers) { c.Idle = time.Second })
	id := node.begun()
	wait(t, "the end", func() bool { return node.tunnel().Session == nil })
	if !gw.recorded("session-closed", id, "no packet passed") || !node.recorded("session-closed", id, "no packet passed") {
		t.Error("the end has not its own cause in both records")
	}
	if tn := node.tunnel(); tn.LastError == nil || !strings.Contains(*tn.LastError, "no packet passed") || !tn.Enabled {
		t.Errorf("status = %+v, want it to say why", tn)
	}
	if node.engine.Device("tnl0") == nil {
		t.Error("the interface is gone, and what was meant for it leaves in the clear")
	}
	if up, err := node.m.Up(t.Context(), "office", patience); err != nil || *up.Session == id {
		t.Errorf("Up = %+v, %v; want another session", up, err)
	}
}

func TestPacketsKeepASessionFromBeingIdle(t *testing.T) {
	inTime(t, time.Second, func(idle time.Duration) error {
		gw, node := timedPair(t, func(c *config.Timers) { c.Idle = idle })
		id := node.begun()
		sid, _ := session.ParseID(id)
		start, n := time.Now(), uint64(0)
		var err error
		wait(t, "three times the idle time", func() bool {
			n++
			for _, d := range []*daemon{gw, node} {
				err = errors.Join(err, d.engine.Device("tnl0").SetStats(sid, engine.Stats{RxPackets: n}))
			}
			return err != nil || time.Since(start) > 3*idle
		})
		if tn := node.tunnel(); err == nil && (tn.Session == nil || *tn.Session != id) {
			err = fmt.Errorf("status = %+v, want session %s still", tn, id)
		}
		return err
	})
}

func TestNodeProvesItselfInTime(t *testing.T) {
	inTime(t, 2*time.Second, func(reauth time.Duration) error {
		_, node := timedPair(t, func(c *config.Timers) { c.Reauth = reauth })
		id := node.begun()
		var last api.Tunnel
		wait(t, "three proofs", func() bool {
			last = node.tunnel()
			return last.Resumes >= 3 || node.recorded("session-closed", id, "")
		})
		if last.Session == nil || *last.Session != id {
			return fmt.Errorf("status = %+v, want session %s still", last, id)
		}
		return nil
	})
}

// begun waits for the first session of a daemon, whatever has become of it since.
func (d *daemon) begun() (id string) {
	d.t.Helper()
	wait(d.t, "a session", func() bool {
		past, _, err := d.m.Events(d.t.Context(), false)
		if err != nil {
			d.t.Fatal(err)
		}
		i := slices.IndexFunc(past, func(e api.Event) bool { return e.Event == "session-established" })
		if i >= 0 {
			id = *past[i].Session
		}
		return i >= 0
	})
	return id
}

// inTime tries what must be done within d, and again with twice the time where
// the try failed and this process was kept from running for a quarter of it:
// nothing else excuses a failure.
func inTime(t *testing.T, d time.Duration, try func(d time.Duration) error) {
	t.Helper()
	for {
		pause := pauses()
		err := try(d)
		longest := pause()
		if err == nil {
			return
		}
		if longest < d/4 || d > 10*time.Second {
			t.Fatalf("with %v, and no pause longer than %v: %v", d, longest, err)
		}
		d *= 2
	}
}

// pauses begins to watch for how long this process is kept from running; the
// function it returns ends that and says how long at most it was.
func pauses() (longest func() time.Duration) {
	done, result := make(chan struct{}), make(chan time.Duration)
	go func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		var most time.Duration
		for last := time.Now(); ; {
			select {
			case <-done:
				result <- most
				return
			case <-tick.C:
				now := time.Now()
				most, last = max(most, now.Sub(last)), now
			}
		}
	}()
	return func() time.Duration {
		close(done)
		return <-result
	}
}

// TestUnprovenNodeIsEnded has a node that is cut off for longer than it may be
// without a proof.
func TestUnprovenNodeIsEnded(t *testing.T) {
	gw, node := timedPair(t, func(c *config.Timers) { c.Reauth = 2 * time.Second })
	id := established(t, gw, node)
	node.end()
	wait(t, "the end", func() bool { return len(gw.sessions()) == 0 })
	if !gw.recorded("session-closed", id, "did not prove itself") {
		t.Error("the end has not its own cause in the record")
	}
	node.run()
	wait(t, "another session", func() bool {
		tn := node.tunnel()
		return tn.State == "established" && *tn.Session != id
	})
}

// TestNoSessionOverAnOldProof asks for a session over a transport that was set up
// too long ago: the node must make another one first.
func TestNoSessionOverAnOldProof(t *testing.T) {
	gw, node := timedPair(t, func(c *config.Timers) { c.Reauth = time.Hour })
	id := established(t, gw, node)
	gw.m.gateway.mu.Lock()
	for _, p := range gw.m.gateway.conns {
		p.provenAt = p.provenAt.Plus(-time.Hour)
	}
	gw.m.gateway.mu.Unlock()
	if err := gw.m.KillSession(t.Context(), id, "test"); err != nil {
		t.Fatal(err)
	}
	wait(t, "another session", func() bool {
		tn := node.tunnel()
		return tn.State == "established" && *tn.Session != id
	})
	past, _, err := gw.m.Events(t.Context(), false)
	if err != nil || !slices.ContainsFunc(past, func(e api.Event) bool {
		return e.Event == "session-refused" && strings.Contains(*e.Cause, "prove anew")
	}) {
		t.Errorf("events = %+v, %v; want a refusal that asks for a proof", past, err)
	}
}

func TestGraceIsADeadlineOfTheDataPlane(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	if left := time.Until(gw.engineSession(id).Deadline); left < 24*time.Hour { // the certificate's end
		t.Errorf("while established the data plane stops the session in %v", left)
	}
	node.end()
	wait(t, "the grace", func() bool {
		left := time.Until(gw.engineSession(id).Deadline)
		return left > 59*time.Minute && left <= time.Hour
	})
	node.run()
	established(t, gw, node)
	wait(t, "the grace to be over", func() bool { return time.Until(gw.engineSession(id).Deadline) > 24*time.Hour })
}

func TestSuspendAndResume(t *testing.T) {
	gw, node := pair(t)
	id := established(t, gw, node)
	held := func(what string, want bool) {
		t.Helper()
		state, gate := "established", engine.Open
		if want {
			state, gate = "suspended", engine.Quarantined
		}
		wait(t, what, func() bool {
			tn, ss := node.tunnel(), gw.sessions()
			return tn.State == state && tn.Held == want && len(ss) == 1 && ss[0].State == state && ss[0].Session == id &&
				node.engineSession(id).Gate == gate && gw.engineSession(id).Gate == gate
		})
	}
	hold := func(f func() error) {
		t.Helper()
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	suspend := func() error { return node.m.Suspend(t.Context(), "office") }
	resume := func() error { return node.m.Resume(t.Context(), "office") }

	hold(suspend)
	held("the hold at both ends", true)
	hold(suspend) // again
	gw.end()
	gw.run()
	held("the hold after a restart of the gateway", true)
	node.end()
	node.run()
	held("the hold after a restart of the node", true)
	hold(resume)
	held("the release at both ends", false)
	for _, d := range []*daemon{gw, node} {
		if !d.recorded("session-released", id, "") {
			t.Errorf("%s has no event of the release", d.cfg.Node.Name)
		}
	}

	hold(suspend)
	held("the second hold", true)
	if err := gw.m.KillSession(t.Context(), id, "test"); err != nil { // the next session is held too
		t.Fatal(err)
	}
	wait(t, "the next session, held", func() bool {
		ss := gw.sessions()
		if len(ss) != 1 || ss[0].Session == id || ss[0].State != "suspended" {
			return false
		}
		return node.engineSession(ss[0].Session).Gate == engine.Quarantined
	})
	hold(func() error { return node.m.Down(t.Context(), "office") })
	if node.tunnel().Held {
		t.Error("the hold outlives the session that down closed")
	}
	if err := suspend(); err == nil {
		t.Error("a tunnel without a session was suspended")
	}
	if err := node.m.Suspend(t.Context(), "nowhere"); err == nil {
		t.Error("a tunnel that does not exist was suspended")
	}
}
